// Adapters of low rank, as linear layers see them (Hu et al. 2021): layers have a place for a table of adapters, and for the time
// of a forward pass the context says which of them each row uses. A pass without adapters does not come by here at all. The
// context belongs to one model; a forward pass is synchronous, so that nothing else can run in it.

import { QFormerError } from '../errors.js';
import { ops, Tensor } from '../tensor/index.js';

/** Adapters of one layer, slot by slot: a: [slots, rank, in], b: [slots, out, rank], scaling: [slots] f32. */
export interface LoraTable {
  a: Tensor;
  b: Tensor;
  scaling: Tensor;
}

/** Slots of the rows of a forward pass: [rows] i32, −1 for none, or one slot for all rows. */
export type LoraRows = Tensor | number;

/** A linear layer's place for adapters. */
export class LoraTarget {
  /** Set by whoever loads adapters, who owns it. */
  table: LoraTable | undefined;

  constructor(
    readonly name: string,
    readonly inFeatures: number,
    readonly outFeatures: number,
    private readonly context: LoraContext,
  ) {}

  /** Whether rows of the current pass may have an adapter on this layer. */
  get isActive(): boolean {
    return this.table !== undefined && this.context.rows !== undefined;
  }

  /** Adds the adapters' part, in place. y: [m, out], x: [m, in] */
  addTo(y: Tensor, x: Tensor): void {
    const { rows } = this.context;
    if (this.table === undefined || rows === undefined) return;
    const [count] = x.shape as [number];
    const adapters =
      rows instanceof Tensor ? rows : Tensor.fromArray(new Int32Array(count).fill(rows), [count], { device: x.device });
    ops.loraApply(y, x, { ...this.table, adapters });
  }
}

/** The layers of one model that can have adapters, and which adapters the current pass uses. */
export class LoraContext {
  readonly targets = new Map<string, LoraTarget>();
  rows: LoraRows | undefined;

  /** The place of the layer `name`, made when the layer is built. */
  target(name: string, inFeatures: number, outFeatures: number): LoraTarget {
    const target = new LoraTarget(name, inFeatures, outFeatures, this);
    this.targets.set(name, target);
    return target;
  }

  /** Runs `pass` with an adapter for each of its rows; every layer of it must have these rows. */
  during<T>(rows: LoraRows, pass: () => T): T {
    if (this.rows !== undefined) throw new QFormerError('INTERNAL', 'a pass with adapters is running');
    this.rows = rows;
    try {
      return pass();
    } finally {
      this.rows = undefined;
    }
  }
}

// What an op costs beside its arithmetic: TypeScript wrapper, Node-API call, shape checks, allocation, release by the scope.
// Chains of ops on tensors of eight numbers, so that the kernels themselves take a few nanoseconds.

import { ops, record, scope } from '../../lib/tensor/index.js';
import { randomTensor } from '../random.js';
import type { Case } from '../row.js';

const CHAIN = 400;
/** The case that the project's dispatch target is about. */
export const DISPATCH_TARGET = `chain of ${CHAIN} adds in a scope`;

export function dispatchCases(): Case[] {
  return [addChain(), mixedChain(), replayedChain(), emptyScope()];
}

function addChain(): Case {
  return {
    group: 'dispatch',
    name: DISPATCH_TARGET,
    calls: CHAIN,
    prepare() {
      const [a, b] = [randomTensor([1, 8]), randomTensor([1, 8])];
      const run = () =>
        scope(() => {
          let x = a;
          for (let i = 0; i < CHAIN; i++) x = ops.add(x, b);
        });
      return { run, dispose: () => [a, b].forEach((tensor) => tensor.dispose()) };
    },
  };
}

function mixedChain(): Case {
  return {
    group: 'dispatch',
    name: `chain of ${CHAIN} ops: rmsNorm, linear 8×8, add, reshape`,
    calls: CHAIN,
    prepare() {
      const [a, b] = [randomTensor([1, 8]), randomTensor([1, 8])];
      const [norm, weight] = [randomTensor([8]), randomTensor([8, 8])];
      const run = () =>
        scope(() => {
          let x = a;
          for (let i = 0; i < CHAIN / 4; i++) {
            x = ops.add(ops.linear(ops.rmsNorm(x, norm, 1e-6), weight), b).reshape([1, 8]);
          }
        });
      return { run, dispose: () => [a, b, norm, weight].forEach((tensor) => tensor.dispose()) };
    },
  };
}

function replayedChain(): Case {
  return {
    group: 'dispatch',
    name: `the ${CHAIN} adds recorded, replayed in one call`,
    calls: CHAIN,
    prepare() {
      const [a, b] = [randomTensor([1, 8]), randomTensor([1, 8])];
      const graph = record(() => {
        let x = a;
        for (let i = 0; i < CHAIN; i++) x = ops.add(x, b);
        return x;
      });
      const dispose = () => {
        graph.dispose();
        [a, b].forEach((tensor) => tensor.dispose());
      };
      return { run: () => graph.replay(), dispose };
    },
  };
}

function emptyScope(): Case {
  return {
    group: 'dispatch',
    name: 'an empty scope',
    prepare: () => ({ run: () => scope(() => {}), dispose: () => {} }),
  };
}

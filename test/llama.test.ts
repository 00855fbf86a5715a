// LLaMA against the reference: grouped-query attention over a paged cache, a prompt of 600 tokens, greedy continuation,
// chunked prefill, several sequences in one batch, on every device and in every dtype it computes in; and the scalings of the
// rotary frequencies.

import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { LanguageModel, VisionLanguageModel } from '../lib/models/model.js';
import type { Llama } from '../lib/models/llama.js';
import { rotaryFrequencies } from '../lib/nn/rotary.js';
import { ops, record, scope, Tensor } from '../lib/tensor/index.js';
import { expectDevices, halfRuns, inF32, isChecked, sample, settled, testDevices } from './support/devices.js';
import { expectClose, expectNoLeaks, expectSameBits, fixturePath, Goldens } from './support/fixtures.js';
import {
  argMax,
  greedy,
  idTensor,
  loadForTest,
  logProbabilities,
  PagedSequences,
  withEditedCheckpoint,
} from './support/models.js';
import { HIDDEN, LOGITS, LOGPROBS } from './support/tolerances.js';

expectDevices();

describe.each(testDevices)('llama-gqa-tiny (8 query heads on 2 kv heads, bf16 weights) on %s', (device) => {
  const goldens = new Goldens('llama-gqa-tiny', 'expected.safetensors');
  let model: VisionLanguageModel;
  let llama: LanguageModel;

  beforeAll(async () => {
    model = await loadForTest(fixturePath('llama-gqa-tiny'), inF32(device));
    llama = model.languageModel;
  });
  afterAll(() => model.dispose());
  expectNoLeaks();

  const prompt = (name: string) => () => llama.embed(idTensor(goldens.ids(`${name}.input_ids`), device));
  // A prompt's rows do not depend on what follows them: with checks the long one ends after 128 of its 600 tokens.
  const isWhole = !isChecked(device);
  const longTokens = isWhole ? 600 : 128;
  const longPrompt = () => prompt('long')().slice(0, 0, longTokens);
  /** Rows of a tensor [longTokens, width] at the positions that the reference kept. */
  const atPositions = (values: Float32Array, width: number): number[] =>
    goldens
      .ids('long.positions')
      .filter((p) => p < longTokens)
      .flatMap((p) => [...values.subarray(p * width, (p + 1) * width)]);
  const sequences = (count: number, capacity: number) => new PagedSequences(llama, count, capacity, { device });

  it('reports its sizes', () => {
    const { numLayers, numKvHeads, headDim, hiddenSize, vocabSize, maxPositions } = llama;
    expect({ numLayers, numKvHeads, headDim, hiddenSize, vocabSize, maxPositions }).toEqual({
      numLayers: 3,
      numKvHeads: 2,
      headDim: 16,
      hiddenSize: 128,
      vocabSize: 1000,
      maxPositions: 8192,
    });
  });

  it('has the hidden states of the reference after every layer, at the last of 600 tokens', () => {
    scope(() => {
      const { layers, norm } = llama as Llama;
      const expected = goldens.floats('long.hidden_states_last_token');
      let x = prompt('long')();
      const tokens = x.shape[0]!;
      const batch = sequences(1, tokens).next([tokens]);
      for (let layer = 0; layer <= layers.length; layer++) {
        const shown = layer === layers.length ? norm.forward(x) : x;
        const last = shown.slice(0, tokens - 1, tokens).toFloat32();
        expectClose(last, expected.subarray(layer * 128, (layer + 1) * 128), HIDDEN, `LLaMA layer ${layer}`);
        if (layer < layers.length) x = layers[layer]!.forward(x, batch, layer);
      }
    });
  });

  it('computes in five ops per layer what the separate ops compute, bit for bit', () => {
    scope(() => {
      const layer = (llama as Llama).layers[1]!;
      const { numHeads, numKvHeads, headDim } = layer.config;
      const x = longPrompt().slice(0, 0, 23);
      const [fused, apart] = [0, 1].map(() => sequences(1, 23).next([23]));
      const y = layer.forward(x, fused!, 1);

      const normed = layer.inputLayernorm.forward(x);
      const heads = (t: Tensor, count: number) => t.reshape([23, count, headDim]);
      const turned = (t: Tensor) => ops.rope(t, apart!.positions, layer.invFreq.tensor);
      const { k, v } = apart!.kvCache.layers[1]!;
      ops.kvAppend(
        turned(heads(layer.kProj.forward(normed), numKvHeads)),
        heads(layer.vProj.forward(normed), numKvHeads),
        k,
        v,
        apart!.slotMapping,
      );
      const attended = ops.pagedAttention(turned(heads(layer.qProj.forward(normed), numHeads)), k, v, {
        ...apart!,
        scale: headDim ** -0.5,
      });
      const hidden = layer.oProj.forward(attended.reshape([23, numHeads * headDim]), { residual: x });
      const after = layer.postAttentionLayernorm.forward(hidden);
      const inner = ops.gatedLinear(after, layer.gateProj.weight.tensor, layer.upProj.weight.tensor);
      expectSameBits(y.toFloat32(), layer.downProj.forward(inner, { residual: hidden }).toFloat32());
      expectSameBits(fused!.kvCache.layers[1]!.k.toFloat32(), k.toFloat32(), 'keys');
      expectSameBits(fused!.kvCache.layers[1]!.v.toFloat32(), v.toFloat32(), 'values');
    });
  });

  it('matches logits and log-probabilities of a long prompt, and continues it greedily', () => {
    scope(() => {
      const { promptLogits, ids } = greedy(llama, longPrompt, isWhole ? 16 : 0, { eos: [2] });
      const rows = atPositions(promptLogits, 1000);
      expectClose(rows, goldens.floats('long.logits_at_positions').subarray(0, rows.length), LOGITS.f32, 'logits');
      const inputs = goldens.ids('long.input_ids').slice(1, longTokens);
      const logprobs = inputs.map((id, t) => logProbabilities(promptLogits.slice(t * 1000, (t + 1) * 1000))[id]!);
      const expected = goldens.floats('long.prompt_logprobs').subarray(0, logprobs.length);
      expectClose(logprobs, expected, LOGPROBS.f32, 'prompt log-probabilities');
      if (isWhole) expect(ids).toEqual(goldens.ids('long.greedy_ids'));
    });
  });

  it('has the final hidden states of the reference at positions along the prompt', () => {
    scope(() => {
      const batch = sequences(1, longTokens).next([longTokens]);
      const rows = atPositions(llama.forward(longPrompt(), batch).toFloat32(), 128);
      const expected = goldens.floats('long.last_hidden_state_at_positions').subarray(0, rows.length);
      expectClose(rows, expected, HIDDEN, 'last hidden state');
    });
  });

  it.each(sample(device, ['short0', 'short1', 'short2']))(
    'matches logits, greedy ids and their log-probabilities of %s',
    (name) => {
      const { promptLogits, ids, logprobs } = greedy(llama, prompt(name), 16, { eos: [2] });
      expectClose(promptLogits.slice(-1000), goldens.floats(`${name}.first_step_logits`), LOGITS.f32, `logits ${name}`);
      const expected = goldens.ids(`${name}.greedy_ids`);
      expect(ids).toEqual(expected.slice(0, ids.length));
      expect(ids.length === expected.length || ids.at(-1) === 2).toBe(true);
      const steps = goldens.floats(`${name}.greedy_step_logprobs`).slice(0, ids.length);
      expectClose(logprobs, steps, LOGPROBS.f32, `log-probabilities ${name}`);
    },
  );

  it.each(sample(device, [7, 257, 1]))(
    'gives the same bits when the prompt is prefilled in pieces of %i tokens',
    (chunk) => {
      const embed = () => (isWhole ? longPrompt() : longPrompt().slice(0, 0, 40));
      const whole = greedy(llama, embed, 3);
      const pieces = greedy(llama, embed, 3, { chunk });
      expectSameBits(pieces.promptLogits, whole.promptLogits);
      expect(pieces.ids).toEqual(whole.ids);
    },
  );

  it('gives each of several sequences in one batch the bits it has alone', () => {
    scope(() => {
      const prompts = ['short0', 'long', 'short2'].map((name) => goldens.ids(`${name}.input_ids`).slice(0, longTokens));
      const alone = prompts.map((ids) => greedy(llama, () => llama.embed(idTensor(ids, device)), 2));
      const together = sequences(3, 602);
      const step = (ids: number[][]) => {
        const batch = together.next(ids.map(({ length }) => length));
        const hidden = llama.forward(llama.embed(idTensor(ids.flat(), device)), batch).toFloat32();
        let row = 0;
        return ids.map(({ length }) => hidden.slice(((row += length) - 1) * 128, row * 128));
      };
      const logitsOf = (rows: Float32Array[]) =>
        rows.map((row) => scope(() => llama.logits(Tensor.fromArray(row, [1, row.length], { device })).toFloat32()));
      const first = logitsOf(step(prompts));
      first.forEach((logits, i) => expectSameBits(logits, alone[i]!.promptLogits.slice(-1000)));
      const second = logitsOf(step(first.map((logits) => [argMax(logits)])));
      expect(second.map(argMax)).toEqual(alone.map(({ ids }) => ids[1]));
    });
  });

  it('replays a recorded decode step with the bits of the same step run directly', () => {
    scope(() => {
      const direct = greedy(llama, prompt('short0'), 5);
      const sequence = sequences(1, 32);
      const embeds = prompt('short0')();
      llama.forward(embeds, sequence.next([embeds.shape[0]!]));
      const ids = idTensor([direct.ids[0]!], device);
      const batch = sequence.next([1]);
      const graph = record(() => llama.logits(llama.forward(llama.embed(ids), batch)));
      for (let step = 1; step < 5; step++) {
        graph.replay();
        const logits = graph.outputs.toFloat32();
        expect(argMax(logits)).toBe(direct.ids[step]);
        expect(logProbabilities(logits)[direct.ids[step]!]).toBe(direct.logprobs[step]);
        ids.write(Int32Array.of(direct.ids[step]!));
        const next = sequence.next([1]);
        for (const name of ['positions', 'slotMapping', 'contextLens'] as const)
          batch[name].write(next[name].toArray());
      }
      graph.dispose();
    });
  });

  it.runIf(device === 'cpu')(
    'computes with f32 copies of the weights what it computes with the stored bf16',
    async () => {
      const widened = await loadForTest(fixturePath('llama-gqa-tiny'), { dtype: 'f32' });
      const [stored, wide] = [llama, widened.languageModel].map((m) =>
        greedy(m, () => m.embed(idTensor(goldens.ids('short0.input_ids'))), 4),
      );
      widened.dispose();
      expectClose(wide!.promptLogits, stored!.promptLogits, { atol: 1e-4 }, 'f32 against bf16 storage');
      expect(wide!.ids).toEqual(stored!.ids);
    },
  );

  it.runIf(device === 'cpu')(
    'multiplies in bf16 where that is asked for, near the reference but not with its bits',
    async () => {
      const rough = await loadForTest<VisionLanguageModel>(fixturePath('llama-gqa-tiny'), { dtype: 'bf16' });
      const { promptLogits } = greedy(rough.languageModel as Llama, prompt('short0'), 1);
      const logits = promptLogits.slice(-1000);
      const worst = expectClose(logits, goldens.floats('short0.first_step_logits'), LOGITS.bf16, 'bf16 logits');
      expect(worst).toBeGreaterThan(1e-3);
      rough.dispose();
    },
  );

  it('refuses an id outside the vocabulary', () => {
    scope(() => {
      const invalid = expect.objectContaining({ code: 'INVALID_ARGUMENT' });
      expect(() => settled(device, () => llama.embed(idTensor([1000], device)))).toThrow(invalid);
      expect(() => settled(device, () => llama.embed(idTensor([-1], device)))).toThrow(invalid);
    });
  });
});

describe.each(halfRuns)('llama-gqa-tiny on $device in $dtype', ({ device, dtype }) => {
  const goldens = new Goldens('llama-gqa-tiny', 'expected.safetensors');
  let model: VisionLanguageModel;
  beforeAll(async () => {
    model = await loadForTest(fixturePath('llama-gqa-tiny'), { device, dtype });
  });
  afterAll(() => model.dispose());
  expectNoLeaks();

  it.each(['short0', 'short1'])('has the logits of the reference after %s, whole and in pieces', (name) => {
    const { languageModel } = model;
    const embed = () => languageModel.embed(idTensor(goldens.ids(`${name}.input_ids`), device));
    const whole = greedy(languageModel, embed, 0).promptLogits;
    expectClose(whole.subarray(-1000), goldens.floats(`${name}.first_step_logits`), LOGITS[dtype], 'logits');
    expectSameBits(greedy(languageModel, embed, 0, { chunk: 4 }).promptLogits, whole, 'in pieces of 4 tokens');
  });
});

describe.each(testDevices)('a tied head on %s', (device) => {
  expectNoLeaks();

  it('is the embedding table, stored or not', async () => {
    const logits: Float32Array[] = [];
    for (const stored of [true, false]) {
      await withEditedCheckpoint(
        'llama-gqa-tiny',
        (header, config) => {
          config.tie_word_embeddings = true;
          // the copy keeps its bytes under a name that the model ignores
          if (!stored) header['model.rotary_emb.inv_freq'] = header['lm_head.weight']!;
          if (!stored) delete header['lm_head.weight'];
        },
        async (dir) => {
          const model = await loadForTest(dir, inF32(device));
          const { languageModel } = model;
          logits.push(greedy(languageModel, () => languageModel.embed(idTensor([5, 9, 2], device)), 1).promptLogits);
          const llama = languageModel as Llama;
          expect(llama.lmHead).toBe(llama.embedTokens.weight);
          model.dispose();
        },
      );
    }
    expectSameBits(logits[0]!, logits[1]!);
  });
});

describe('rotary frequencies', () => {
  const goldens = new Goldens('generated', 'rope.safetensors');
  const llama3 = {
    type: 'llama3',
    factor: 8,
    lowFreqFactor: 1,
    highFreqFactor: 4,
    originalMaxPositionEmbeddings: 8192,
  } as const;

  it.each([
    ['default', undefined],
    ['linear', { type: 'linear', factor: 4 } as const],
    ['llama3', llama3],
  ])('with %s scaling are those of the reference', (name, scaling) => {
    // a few roundings of pow in f32
    expectClose(rotaryFrequencies(64, 500000, scaling), goldens.floats(name), { rtol: 5e-7 }, name);
  });
});

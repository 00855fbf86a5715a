// Which model_type makes which model, and how others are added.

import { describe, expect, it } from 'vitest';
import type { Checkpoint } from '../lib/io/checkpoint.js';
import { openCheckpoint } from '../lib/io/checkpoint.js';
import { Blip2 } from '../lib/models/blip2.js';
import { Llama } from '../lib/models/llama.js';
import type { VisionLanguageModel } from '../lib/models/model.js';
import { Opt } from '../lib/models/opt.js';
import { T5 } from '../lib/models/t5.js';
import { createModel, registerModel } from '../lib/models/registry.js';
import { Weights } from '../lib/models/weights.js';
import { expectNoLeaks, fixturePath } from './support/fixtures.js';

function create(checkpoint: Checkpoint): VisionLanguageModel {
  return createModel(checkpoint, new Weights(checkpoint, { device: 'cpu', dtype: 'auto' }));
}

describe('the registry', () => {
  expectNoLeaks();

  it.each(['instructblip-vicuna-tiny', 'generated/blip2-llama-tiny'])('makes the composition of %s', (fixture) => {
    const model = create(openCheckpoint(fixturePath(fixture)));
    expect(model).toBeInstanceOf(Blip2);
    expect(model.languageModel).toBeInstanceOf(Llama);
  });

  it('makes the language model that the text section names', () => {
    expect(create(openCheckpoint(fixturePath('blip2-opt-tiny'))).languageModel).toBeInstanceOf(Opt);
    expect(create(openCheckpoint(fixturePath('generated/opt-tiny'))).languageModel).toBeInstanceOf(Opt);
    expect(create(openCheckpoint(fixturePath('instructblip-flant5-tiny'))).languageModel).toBeInstanceOf(T5);
    expect(create(openCheckpoint(fixturePath('generated/t5-tiny'))).languageModel).toBeInstanceOf(T5);
  });

  it('makes a bare LLaMA without image functions', () => {
    const model = create(openCheckpoint(fixturePath('llama-gqa-tiny')));
    expect(model.languageModel).toBeInstanceOf(Llama);
    expect(model.encodeImage).toBeUndefined();
    expect(model.imageTokens).toBeUndefined();
  });

  it('refuses an unknown model_type, naming the known ones', () => {
    const checkpoint = { config: { modelType: 'perceiver' } } as unknown as Checkpoint;
    const details = { modelType: 'perceiver', known: expect.arrayContaining(['blip-2', 'instructblip', 'llama']) };
    expect(() => create(checkpoint)).toThrow(expect.objectContaining({ code: 'UNSUPPORTED', details }));
  });

  it('uses a registered factory, and refuses to replace one', () => {
    const made = { dispose: () => {} } as unknown as VisionLanguageModel;
    registerModel('registered-by-a-test', () => made);
    const checkpoint = { config: { modelType: 'registered-by-a-test' } } as unknown as Checkpoint;
    expect(create(checkpoint)).toBe(made);
    expect(() => registerModel('llama', () => made)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  });
});

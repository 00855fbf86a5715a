// How far a model may be from the reference: the figures of test/fixtures, which each expected.json states.

/** Hidden states in f32: what rounding may move over a few layers of values around 1. */
export const HIDDEN = { atol: 2e-4 };

/** Logits by the dtype of the activations; values are about ±15. */
export const LOGITS = { f32: { atol: 1e-3 }, f16: { atol: 5e-2 }, bf16: { atol: 3e-1 } };

/** Log-probabilities: a log-softmax moves by no more than twice what its logits do. */
export const LOGPROBS = { f32: { atol: 2e-3 }, f16: { atol: 1e-1 }, bf16: { atol: 6e-1 } };

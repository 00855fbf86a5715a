// Stands in for the engine's worker in tests of the main thread: speaks the protocol, loads nothing, and does what the prompt
// says: `count N` generates N tokens, one per turn of its event loop; `wait` generates one and then nothing until aborted;
// `fail` ends with an error of its own; `die` ends the worker. A folder named `never-ready` loads until it is aborted.

import { parentPort, workerData } from 'node:worker_threads';
import { basename } from 'node:path';

const { options, abortFlag } = workerData;
const running = new Map();
const usage = { promptTokens: 3, completionTokens: 0, cachedTokens: 0, imageTokens: 0 };
const timings = {
  queueMs: 0,
  imageMs: 0,
  prefillMs: 1,
  decodeMs: 1,
  timeToFirstTokenMs: 1,
  totalMs: 2,
  tokensPerSecond: 1,
};
const step = (event) => parentPort.postMessage({ type: 'step', buffers: [], events: [event] });

function end(id, finishReason) {
  const { tokenIds, request } = running.get(id);
  running.delete(id);
  const text = tokenIds.map((token) => ` t${token}`).join('');
  const result = { text, tokenIds, finishReason, usage, timings, seed: 7, request };
  step({ type: 'end', id, result });
}

function count(id, total) {
  const state = running.get(id);
  if (state === undefined) return;
  if (state.tokenIds.length === total) return end(id, 'stop');
  const token = state.tokenIds.length;
  state.tokenIds.push(token);
  step({ type: 'delta', id, text: ` t${token}`, tokenIds: [token] });
  setImmediate(count, id, total);
}

function start(id, request) {
  const images = (request.images ?? []).map(({ data, width, height }) => ({ bytes: data.length, width, height }));
  running.set(id, { tokenIds: [], request: { ...request, images } });
  const [verb, argument] = String(request.prompt).split(' ');
  if (verb === 'die') process.exit(3);
  if (verb === 'wait') return count(id, Infinity);
  if (verb !== 'fail') return count(id, verb === 'count' ? Number(argument) : 2);
  running.delete(id);
  step({ type: 'error', id, error: { code: 'INVALID_ARGUMENT', message: 'the prompt is bad', details: { at: 1 } } });
}

parentPort.on('message', (message) => {
  if (message.type === 'request') start(message.id, message.request);
  if (message.type === 'abort' && running.has(message.id)) end(message.id, 'abort');
  if (message.type === 'shutdown') {
    running.clear();
    parentPort.postMessage({ type: 'closed', liveTensors: 0 });
    parentPort.close();
  }
});

function load() {
  if (Atomics.load(new Int32Array(abortFlag), 0) === 1) {
    parentPort.postMessage({ type: 'failed', error: { code: 'ABORTED', message: 'aborted', details: {} } });
    return parentPort.close();
  }
  if (basename(options.dir) === 'never-ready') return void setTimeout(load, 1);
  const supportsImages = basename(options.dir) !== 'text-only';
  const info = { dir: options.dir, modelType: 'instructblip', generation: { eosTokenIds: [2] }, supportsImages };
  parentPort.postMessage({ type: 'ready', info });
}
load();

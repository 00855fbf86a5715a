// The main thread's end against workers that misbehave: nothing hangs, nothing is unhandled, the process lives on.
import { execFileSync } from 'node:child_process';
import { afterEach, describe, expect, it } from 'vitest';
import { EngineClient, type ClientOptions } from '../lib/engine/client.js';
import { bundle } from './support/engine-worker.js';

/** A worker made of `body`, which sees `port` and `workerData`. */
function fakeWorker(body: string): URL {
  const code = `import { parentPort as port, workerData } from 'node:worker_threads';\n${body}`;
  return new URL(`data:text/javascript,${encodeURIComponent(code)}`);
}

const READY = `port.postMessage({ type: 'ready', info: { modelType: 'fake' } });`;
const LEAVE = `if (m.type === 'shutdown') { port.postMessage({ type: 'closed', liveTensors: 0 }); port.close(); }`;
const onMessage = (body: string): string => `${READY} port.on('message', (m) => { ${body} });`;

let client: EngineClient | undefined;
afterEach(async () => {
  await client?.close();
  client = undefined;
});

async function start(body: string, options: Partial<ClientOptions> = {}): Promise<EngineClient> {
  client = await EngineClient.start({ dir: 'nowhere', workerUrl: fakeWorker(body), ...options });
  return client;
}

const request = { prompt: 'x' };

describe('a worker that dies', () => {
  it('while it loads fails the start', async () => {
    await expect(start('process.exit(3)')).rejects.toMatchObject({ code: 'INTERNAL', message: /exited with code 3/ });
    await expect(start(`throw new Error('no addon')`)).rejects.toMatchObject({ code: 'INTERNAL', message: /no addon/ });
  });

  it('while it generates rejects every pending request and refuses later ones', async () => {
    const engine = await start(onMessage(`if (m.id === 2) process.exit(7);`));
    const handles = [engine.submit(request), engine.submit(request)];
    for (const { done } of handles) await expect(done).rejects.toMatchObject({ code: 'INTERNAL', message: /code 7/ });
    expect(engine.pendingRequests).toBe(0);
    expect(() => engine.submit(request)).toThrow(expect.objectContaining({ code: 'INTERNAL' }));
    await expect(engine.stats()).rejects.toMatchObject({ code: 'INTERNAL' });
    expect(await engine.close()).toEqual({ liveTensors: 0 });
  });

  it('from an exception carries its message', async () => {
    const engine = await start(onMessage(`throw new Error('kaputt');`));
    await expect(engine.submit(request).done).rejects.toMatchObject({ code: 'INTERNAL', message: /kaputt/ });
  });
});

describe('a load', () => {
  it('that fails in the worker rejects with the worker’s error, code and details included', async () => {
    const error = `{ code: 'FORMAT', message: 'bad file', details: { file: 'a' }, stack: 'there' }`;
    await expect(start(`port.postMessage({ type: 'failed', error: ${error} });`)).rejects.toMatchObject({
      name: 'QFormerError',
      code: 'FORMAT',
      message: 'bad file',
      details: { file: 'a' },
    });
  });

  it('can be aborted before and while it runs', async () => {
    const reason = new Error('enough');
    await expect(start(READY, { signal: AbortSignal.abort(reason) })).rejects.toMatchObject({
      code: 'ABORTED',
      cause: reason,
    });
    const controller = new AbortController();
    const waits = `
      const flag = new Int32Array(workerData.abortFlag);
      port.postMessage({ type: 'progress', progress: { phase: 'open', loaded: 0, total: 1 } });
      Atomics.wait(flag, 0, 0, 50);
      while (Atomics.load(flag, 0) === 0) Atomics.wait(flag, 0, 0, 5);
      port.postMessage({ type: 'failed', error: { code: 'ABORTED', message: 'stopped', details: {} } });`;
    const started = start(waits, { signal: controller.signal, onProgress: () => controller.abort(reason) });
    await expect(started).rejects.toMatchObject({ code: 'ABORTED', cause: reason });
  });

  it('whose progress callback throws rejects with what it threw', async () => {
    const thrown = new Error('mine');
    const body = `port.postMessage({ type: 'progress', progress: { phase: 'open', loaded: 0, total: 1 } });`;
    const onProgress = (): never => {
      throw thrown;
    };
    await expect(start(body, { onProgress })).rejects.toBe(thrown);
  });
});

describe('closing', () => {
  it('rejects what is pending with ABORTED, refuses more, and may be repeated', async () => {
    const engine = await start(onMessage(LEAVE));
    const { done } = engine.submit(request);
    const closed = engine.close();
    await expect(done).rejects.toMatchObject({ code: 'ABORTED' });
    expect(await closed).toEqual({ liveTensors: 0 });
    expect(await engine.close()).toEqual({ liveTensors: 0 });
    expect(() => engine.submit(request)).toThrow(expect.objectContaining({ code: 'ABORTED' }));
  });
});

describe('events', () => {
  const delta = `{ type: 'delta', id: m.id, text: 'a', tokenIds: [1] }`;
  const end = `{ type: 'end', id: m.id, result: { text: 'a' } }`;

  it('of one step arrive in order, and those of unknown requests are ignored', async () => {
    const events = `[{ type: 'end', id: 99, result: {} }, ${delta}, ${delta}, ${end}, ${delta}]`;
    const engine = await start(
      onMessage(
        `if (m.type === 'request') port.postMessage({ type: 'step', events: ${events}, buffers: [] }); ${LEAVE}`,
      ),
    );
    const seen: string[] = [];
    const handle = engine.submit(request, { onDelta: ({ text }) => seen.push(text) });
    expect(await handle.done).toEqual({ text: 'a' });
    handle.abort(); // too late: nothing happens
    expect(seen).toEqual(['a', 'a']);
  });

  it('a callback that throws ends only its own request', async () => {
    const engine = await start(
      onMessage(
        `if (m.type === 'request') port.postMessage({ type: 'step', events: [${delta}, ${end}], buffers: [] }); ${LEAVE}`,
      ),
    );
    const thrown = new Error('mine');
    const bad = engine.submit(request, {
      onDelta: () => {
        throw thrown;
      },
    });
    const good = engine.submit(request);
    await expect(bad.done).rejects.toBe(thrown);
    expect(await good.done).toEqual({ text: 'a' });
  });
});

it('an idle engine that nobody closed does not keep the process alive', () => {
  const { url, remove } = bundle('lib/engine/client.ts');
  try {
    const worker = fakeWorker(onMessage(LEAVE)).href;
    const script = `
      import { EngineClient } from ${JSON.stringify(url.href)};
      await EngineClient.start({ dir: 'x', workerUrl: new URL(${JSON.stringify(worker)}) });
      console.log('started');`;
    const output = execFileSync(process.execPath, ['--input-type=module', '-e', script], { timeout: 20_000 });
    expect(output.toString()).toBe('started\n');
  } finally {
    remove();
  }
});

// Builds the worker from source and starts clients with it, so that these tests never run a stale dist/.
import { rmSync } from 'node:fs';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { buildSync } from 'esbuild';
import { EngineClient, type ClientOptions } from '../../lib/engine/client.js';
import type { EngineRequest, EngineResult } from '../../lib/engine/protocol.js';

const source = (path: string): string => fileURLToPath(new URL(`../../${path}`, import.meta.url));

/** Bundles a source file into build/test (inside the package, where the addon is found); answers its URL. */
export function bundle(entry: string): { url: URL; remove: () => void } {
  const outfile = source(`build/test/${entry.replaceAll('/', '-')}-${process.pid}.mjs`);
  buildSync({
    entryPoints: [source(entry)],
    outfile,
    bundle: true,
    platform: 'node',
    format: 'esm',
    target: 'node20',
    packages: 'external',
  });
  return { url: pathToFileURL(outfile), remove: () => rmSync(outfile, { force: true }) };
}

export function startClient(workerUrl: URL, dir: string, options: Partial<ClientOptions> = {}): Promise<EngineClient> {
  return EngineClient.start({ dir, workerUrl, device: 'cpu', kvCacheTokens: 4096, ...options });
}

export interface Streamed {
  result: EngineResult;
  text: string;
  tokenIds: number[];
}

/** Sends a request and collects its stream. */
export async function ask(client: EngineClient, request: EngineRequest): Promise<Streamed> {
  const tokenIds: number[] = [];
  let text = '';
  const handle = client.submit(request, {
    onDelta: (delta) => {
      text += delta.text;
      tokenIds.push(...delta.tokenIds);
    },
  });
  return { result: await handle.done, text, tokenIds };
}

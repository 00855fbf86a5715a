// What this machine offers, and why something is not used. The native code is asked in a process of its own: this is the
// command people run when it does not load, and an addon that dies on loading must not take the report with it.

import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { arch, cpus, freemem, platform, totalmem } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { packageVersion } from './package-files.js';
import { packageRoot } from './package-root.js';

/** A device the native code can run on. Memory in bytes. */
export interface DoctorDevice {
  name: string;
  device: string;
  /** Instruction set or compute capability in use. */
  level: string;
  memory: number;
  freeMemory: number;
  threads: number;
}

/** What `doctor` found. Memory in bytes. */
export interface DoctorReport {
  version: string;
  platform: string;
  arch: string;
  node: string;
  /** Node-API version of this Node. */
  napi: string;
  cpu: { model: string; logicalCores: number };
  memory: { total: number; free: number };
  /** `error` says in one sentence why the native code cannot be used. */
  native: { error?: string; devices: DoctorDevice[] };
  /** Kinds of devices that are not used here, and why. */
  unused: { device: string; reason: string }[];
}

/** Reports platform, devices in use and reasons for those that are not. Never throws for what it finds. */
export async function doctor(): Promise<DoctorReport> {
  const processors = cpus();
  const { unused = [{ device: 'cuda', reason: NATIVE_NEEDED }], ...native } = await askNative();
  return {
    version: packageVersion(),
    platform: platform(),
    arch: arch(),
    node: process.versions.node,
    napi: process.versions.napi ?? 'unknown',
    cpu: { model: processors[0]?.model.trim() ?? 'unknown', logicalCores: processors.length },
    memory: { total: totalmem(), free: freemem() },
    native,
    unused,
  };
}

const question = `
  import(process.argv[1]).then(
    ({ devices, unusedDevices }) => console.log(JSON.stringify({ devices: devices(), unused: unusedDevices() })),
    (error) => console.log(JSON.stringify({ devices: [], error: error.message })),
  );`;

const NATIVE_NEEDED = 'the native code is needed to look for a GPU';

/** What the native code answers; without `unused` where it could not be asked. */
type NativeAnswer = DoctorReport['native'] & { unused?: DoctorReport['unused'] };

async function askNative(): Promise<NativeAnswer> {
  const library = join(packageRoot(), 'dist', 'tensor.js');
  if (!existsSync(library)) return { devices: [], error: `${library} is missing: run 'npm run build'` };
  const args = ['--input-type=module', '--eval', question, pathToFileURL(library).href];
  return new Promise((resolve) => {
    execFile(process.execPath, args, { timeout: 30_000 }, (error, stdout) => {
      const line = stdout.trim().split('\n').at(-1) ?? '';
      if (line.startsWith('{')) return resolve(JSON.parse(line) as NativeAnswer);
      const signal = (error as { signal?: string } | null)?.signal;
      resolve({ devices: [], error: `loading it ended the process (${signal ?? error?.message ?? 'no output'})` });
    });
  });
}

// Installs the peers into build-peers/, which git ignores, and says which are missing and why. What is installed already is kept.

import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { packageRoot } from '../../lib/package-root.js';
import type { Command } from './contestant.js';
import type { Contestant, Peer } from './protocol.js';

const VERSIONS = { 'onnxruntime-node': '1.30.0', 'node-llama-cpp': '3.22.1' } as const;
const PYTHON_PACKAGES = ['torch==2.13.0', 'transformers==5.18.0', 'pillow==12.3.0'];
const INSTALL_MS = 600_000;

/** A peer that takes part, or the reason why it does not. */
export interface PeerState {
  name: Peer;
  version?: string;
  missing?: string;
}

/** Everything the peers need that is not in git. */
export const PEERS_FOLDER = join(packageRoot(), 'build-peers');
/** Where the npm packages are. */
export const NODE_PEERS = join(PEERS_FOLDER, 'node');
const PYTHON = join(PEERS_FOLDER, 'python');

/** Installs the peers that are `wanted`, or only looks for them (`offline`). */
export function installPeers(wanted: ReadonlySet<Peer>, offline: boolean): PeerState[] {
  mkdirSync(NODE_PEERS, { recursive: true });
  const states: PeerState[] = [];
  const attempt = (names: readonly Peer[], install: () => void, version: (name: Peer) => string) => {
    const asked = names.filter((name) => wanted.has(name));
    if (asked.length === 0) return;
    let failure: string | undefined;
    try {
      if (!offline) install();
    } catch (error) {
      failure = reasonOf(error);
    }
    for (const name of asked) states.push(stateOf(name, version, failure));
  };
  for (const name of ['node-llama-cpp', 'onnxruntime-node'] as const) {
    attempt([name], () => installFromNpm(name), nodeVersion);
  }
  attempt(['torch', 'Pillow'], installPython, pythonVersion);
  attempt(
    ['sharp'],
    () => {},
    () => packageVersion(join(packageRoot(), 'node_modules', 'sharp')),
  );
  return states;
}

function stateOf(name: Peer, version: (name: Peer) => string, failure: string | undefined): PeerState {
  try {
    return { name, version: version(name) };
  } catch (error) {
    return { name, missing: failure ?? reasonOf(error) };
  }
}

// No scripts: one of onnxruntime-node fetches CUDA libraries from elsewhere, one of node-llama-cpp may build from source. Its
// library for this platform is a package of its own; the others (GPUs, other systems: 700 MB) are left out.
function installFromNpm(name: keyof typeof VERSIONS): void {
  if (existsSync(join(NODE_PEERS, 'node_modules', name))) return;
  const manifest = join(NODE_PEERS, 'package.json');
  if (!existsSync(manifest)) writeFileSync(manifest, '{ "private": true }\n');
  const version = VERSIONS[name];
  const platform = { linux: 'linux', darwin: 'mac', win32: 'win' }[process.platform as string] ?? process.platform;
  const suffix = process.platform === 'darwin' && process.arch === 'arm64' ? '-metal' : '';
  const library = name === 'node-llama-cpp' ? [`@node-llama-cpp/${platform}-${process.arch}${suffix}@${version}`] : [];
  const flags = ['--ignore-scripts', '--omit=optional', '--no-audit', '--no-fund', '--loglevel=error'];
  execFileSync('npm', ['install', ...flags, `${name}@${version}`, ...library], {
    cwd: NODE_PEERS,
    stdio: ['ignore', 'ignore', 'pipe'],
    timeout: INSTALL_MS,
  });
}

function nodeVersion(name: Peer): string {
  return packageVersion(join(NODE_PEERS, 'node_modules', name));
}

function packageVersion(folder: string): string {
  return (JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8')) as { version: string }).version;
}

function installPython(): void {
  if (importVersions() !== undefined) return;
  const python = spawnSync('python3', ['--version']);
  if (python.status !== 0) throw new Error('there is no python3');
  const options = { stdio: ['ignore', 'ignore', 'pipe'] as ('ignore' | 'pipe')[], timeout: INSTALL_MS };
  execFileSync('python3', ['-m', 'venv', PYTHON], options);
  execFileSync(pythonProgram(), ['-m', 'pip', 'install', '--quiet', '--retries', '0', ...PYTHON_PACKAGES], options);
  // not needed, and where it does not fit torch it breaks transformers
  spawnSync(pythonProgram(), ['-m', 'pip', 'uninstall', '--quiet', '-y', 'torchvision']);
}

const VERSION_SCRIPT =
  'import torch, transformers, PIL; print(torch.__version__, transformers.__version__, PIL.__version__)';

function importVersions(): string[] | undefined {
  if (!existsSync(pythonProgram())) return undefined;
  const { status, stdout } = spawnSync(pythonProgram(), ['-c', VERSION_SCRIPT], { encoding: 'utf8' });
  return status === 0 ? stdout.trim().split(' ') : undefined;
}

function pythonVersion(name: Peer): string {
  const versions = importVersions();
  if (versions === undefined) throw new Error('torch, transformers and PIL cannot be imported');
  const [torch, transformers, pillow] = versions;
  return name === 'torch' ? `${torch} (transformers ${transformers})` : pillow!;
}

function pythonProgram(): string {
  return join(PYTHON, 'bin', 'python');
}

/** How to start a contestant; the bundles lie beside this one. */
export function commandOf(contestant: Contestant): Command {
  const beside = (file: string) => fileURLToPath(new URL(file, import.meta.url));
  switch (contestant) {
    case 'ours':
    case 'sharp':
      return { command: process.execPath, args: [beside(`peers-${contestant}.js`)] };
    case 'node-llama-cpp':
      return { command: process.execPath, args: [beside('peers-llama-cpp.js'), NODE_PEERS] };
    case 'onnxruntime-node':
      return { command: process.execPath, args: [beside('peers-onnxruntime.js'), NODE_PEERS] };
    case 'torch':
    case 'Pillow':
      return { command: pythonProgram(), args: [join(packageRoot(), 'bench', 'peers', 'pytorch.py')] };
  }
}

function reasonOf(error: unknown): string {
  const { stderr, message } = error as { stderr?: Buffer | null; message: string };
  const lines = (stderr?.toString().trim() || message).split('\n');
  return lines.find((line) => /error/i.test(line))?.trim() ?? lines.at(-1)!.trim();
}

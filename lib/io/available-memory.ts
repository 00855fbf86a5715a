// How much memory this process may still take: what the system has, lowered to the limit of every control group from the
// process's own up to the root. File pages that can be dropped (a mapped checkpoint among them) count as available on both sides:
// MemAvailable contains them, and a group's usage is taken without them.

import { readFileSync } from 'node:fs';
import { freemem } from 'node:os';
import { dirname, join } from 'node:path';

/** Bytes. `root` stands for / in tests. */
export function availableMemory(root = '/'): number {
  const meminfo = readText(join(root, 'proc/meminfo'));
  const kilobytes = /^MemAvailable:\s+(\d+) kB$/m.exec(meminfo ?? '')?.[1];
  let available = kilobytes === undefined ? freemem() : Number(kilobytes) * 1024;
  for (const line of (readText(join(root, 'proc/self/cgroup')) ?? '').split('\n')) {
    const [, controllers, path] = /^\d+:([^:]*):(\/.*)$/.exec(line) ?? [];
    if (path === undefined) continue;
    if (controllers === '') available = Math.min(available, tightest(join(root, 'sys/fs/cgroup'), path, version2));
    if (controllers!.split(',').includes('memory')) {
      available = Math.min(available, tightest(join(root, 'sys/fs/cgroup/memory'), path, version1));
    }
  }
  return Math.max(0, available);
}

interface Group {
  limit: string;
  usage: string;
  /** Entries of memory.stat that can be dropped. */
  files: readonly string[];
}

const version2: Group = { limit: 'memory.max', usage: 'memory.current', files: ['active_file', 'inactive_file'] };
const version1: Group = {
  limit: 'memory.limit_in_bytes',
  usage: 'memory.usage_in_bytes',
  files: ['total_active_file', 'total_inactive_file'],
};

/** What the tightest of the group at `path` and its ancestors leaves. In a container the path may not exist: then the mount's root. */
function tightest(mount: string, path: string, group: Group): number {
  let least = Infinity;
  for (let at = path; ; at = dirname(at)) {
    least = Math.min(least, left(join(mount, at), group));
    if (at === '/' || at === '.') return least;
  }
}

function left(dir: string, { limit, usage, files }: Group): number {
  const bytes = readNumber(join(dir, limit));
  const used = readNumber(join(dir, usage));
  if (bytes === undefined || used === undefined) return Infinity;
  const stat = readText(join(dir, 'memory.stat')) ?? '';
  const entries = new Map(stat.split('\n').map((line) => line.split(' ') as [string, string]));
  const droppable = files.reduce((sum, name) => sum + Number(entries.get(name) ?? 0), 0);
  return bytes - Math.max(0, used - droppable);
}

/** A number; undefined where there is none, as in `max`. */
function readNumber(file: string): number | undefined {
  const text = readText(file)?.trim();
  return text !== undefined && /^\d+$/.test(text) ? Number(text) : undefined;
}

function readText(file: string): string | undefined {
  try {
    return readFileSync(file, 'utf8');
  } catch {
    return undefined;
  }
}

// Running a command as one step of a longer job: one line of progress, its output only when it fails.
import { spawnSync } from 'node:child_process';

/** A step that cannot succeed without the user; its message is all they need to read. */
export class StepError extends Error {}

/** Runs quietly; returns { ok, output, missing }. */
export function capture(command, args, options = {}) {
  const result = spawnSync(command, args, {
    encoding: 'utf8',
    maxBuffer: 1 << 28,
    ...options,
    stdio: [options.input === undefined ? 'ignore' : 'pipe', 'pipe', 'pipe'],
  });
  const output = `${result.stdout ?? ''}${result.stderr ?? ''}`;
  return { ok: result.status === 0, output, missing: result.error?.code === 'ENOENT' };
}

/** Runs `command` as the step `title`; throws a StepError that ends in the command's own output when it fails. */
export function step(title, command, args, { hint, ...options } = {}) {
  process.stderr.write(`${title} ...`);
  const begin = performance.now();
  const { ok, output, missing } = capture(command, args, options);
  const seconds = ((performance.now() - begin) / 1000).toFixed(1);
  process.stderr.write(ok ? ` ${seconds} s\n` : ' failed\n');
  if (ok) return;
  const said = missing ? `${command}: command not found` : output.trim().split('\n').slice(-60).join('\n');
  throw new StepError(
    `${said}\n\n${title}: failed. The command was:\n  ${[command, ...args].join(' ')}${hint ? `\n${hint}` : ''}`,
  );
}

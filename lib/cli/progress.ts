// A progress bar on stderr, where that is a terminal.

/** Shows how much is done. */
export interface Progress {
  /** `text` stands behind the percentage. */
  update(done: number, total: number, text: string): void;
  stop(): void;
}

/** A bar that begins with `title`; one that shows nothing where stderr is no terminal. */
export async function progressBar(title: string): Promise<Progress> {
  if (!process.stderr.isTTY) return { update: () => undefined, stop: () => undefined };
  const { default: progress } = await import('cli-progress');
  const bar = new progress.SingleBar({
    format: `${title} {bar} {percentage} % {text}`,
    clearOnComplete: true,
    hideCursor: true,
    stopOnComplete: false,
    stream: process.stderr,
  });
  bar.start(1, 0, { text: '…' });
  return {
    update: (done, total, text) => {
      bar.setTotal(Math.max(total, 1));
      bar.update(done, { text });
    },
    stop: () => bar.stop(),
  };
}

// report.json as a page for people: one line per section, and the table floor | peer | ours.

const number = (value, digits = 1) => (value === undefined ? '–' : value.toFixed(digits));

function sectionLine(name, section) {
  const skipped = typeof section.skipped === 'string' ? section.skipped : undefined;
  const state = skipped !== undefined ? `skipped: ${skipped}` : section.ok ? 'ok' : 'FAILED';
  const counts = section.passed === undefined ? '' : `${section.passed} passed, ${section.failed} failed`;
  return `| ${name} | ${state} | ${counts} | ${section.seconds.toFixed(0)} s |`;
}

/** Times in µs; the floor is the longer of bytes over the bandwidth and flops over the tensor peak of this card. */
function benchLine(row, peers) {
  const peer = peers?.[row.name];
  const best = peer?.us;
  const share = row.floorUs === undefined || row.us === undefined ? undefined : (100 * row.floorUs) / row.us;
  const against = best === undefined || row.us === undefined ? undefined : best / row.us;
  const rate = row.us === undefined ? (row.error ?? '–') : number(row.us);
  const cells = [row.name, number(row.floorUs), best === undefined ? (peer?.error ?? '–') : number(best), rate];
  return `| ${[...cells, share === undefined ? '–' : `${share.toFixed(0)} %`, against === undefined ? '–' : `${against.toFixed(2)}×`].join(' | ')} |`;
}

/** The whole report. */
export function markdown(report) {
  const { sections, device, version, started } = report;
  const found = sections.doctor?.report?.native.devices.find(({ name }) => name.startsWith(device));
  const lines = [
    `# qformer ${version} on ${device}${found ? `: ${found.device}, ${found.level}` : ''}`,
    '',
    started,
    '',
  ];
  lines.push('| section | result | tests | time |', '| --- | --- | --- | --- |');
  lines.push(...Object.entries(sections).map(([name, section]) => sectionLine(name, section)));
  const { bench, peers } = sections;
  if (bench?.rows) {
    const { bandwidth, tensorFlops } = bench.limits ?? {};
    lines.push(
      '',
      `Floor: ${number(bandwidth / 1e9, 0)} GB/s, ${number(tensorFlops / 1e12, 0)} TFLOP/s (${bench.limits?.source}).`,
    );
    lines.push('Peer: PyTorch on the same card (cuBLAS, cuDNN, its attention), in a captured graph. Times in µs.', '');
    lines.push('| case | floor | peer | ours | of floor | peer ÷ ours |', '| --- | --: | --: | --: | --: | --: |');
    lines.push(...bench.rows.map((row) => benchLine(row, peers?.times)));
  }
  return `${lines.join('\n')}\n`;
}

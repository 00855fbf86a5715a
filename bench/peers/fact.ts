// A single figure of the report and its bound.

/** A figure, with what it had to be. */
export interface Fact {
  group: string;
  name: string;
  threads?: number;
  value?: number;
  unit: string;
  note?: string;
  bar?: string;
  verdict?: 'met' | 'LOST' | 'not run';
}

/** A fact that must be at most, or at least, `bound`; `value` undefined: it could not be measured. */
export function bounded(fact: Omit<Fact, 'bar' | 'verdict'>, sense: '≤' | '≥', bound: number): Fact {
  const { value, unit } = fact;
  const bar = `${sense} ${bound} ${unit}`;
  if (value === undefined) return { ...fact, bar, verdict: 'not run' };
  return { ...fact, bar, verdict: (sense === '≤' ? value <= bound : value >= bound) ? 'met' : 'LOST' };
}

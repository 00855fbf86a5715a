// VQA accuracy (Antol et al. 2015, section 4; Goyal et al. 2017): an answer is right to the degree that at least three of the
// other annotators gave it. The normalisation is the official evaluation's, with its quirks, because published figures contain
// them: a comma between digits anywhere in a text makes all its punctuation vanish instead of becoming spaces, and a full stop
// goes unless a digit follows.

const PUNCTUATION = [...';/[]"{}()=+\\_-><@`,?!'];
const NUMBERS = ['none', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine', 'ten'];
const DIGITS = new Map([['zero', '0'], ...NUMBERS.map((word, i): [string, string] => [word, String(i)])]);
const ARTICLES = new Set(['a', 'an', 'the']);

// Written here with their apostrophes; the table maps the forms without one of them. Words that are others without it
// (we'll, she'd, I'm as `im`) are not in the official table.
const CONTRACTIONS = `ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've
someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll
they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've
who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all you'd you'd've you'll you're you've`;
const EXPANDED = new Map(
  CONTRACTIONS.split(/\s+/).flatMap((word) =>
    [...word.matchAll(/'/g)].map(({ index }): [string, string] => [word.slice(0, index) + word.slice(index + 1), word]),
  ),
);

/** An answer in the form in which answers are compared: punctuation, number words, articles and contractions settled. */
export function normalizeAnswer(answer: string): string {
  return settleWords(settlePunctuation(oneLine(answer)));
}

/**
 * Accuracy of `answer`, from 0 to 1, against the annotators' answers as the official data has them: ten, in lower case, without
 * articles. Only `answer` is normalised in full.
 */
export function vqaAccuracy(answer: string, annotators: readonly string[]): number {
  const given = normalizeAnswer(answer);
  const agree = annotators.every((other) => other === annotators[0]);
  const truth = annotators.map((other) => (agree ? oneLine(other) : settlePunctuation(oneLine(other))));
  const scores = truth.map((_, left) => {
    const matching = truth.filter((other, i) => i !== left && other === given).length;
    return Math.min(1, matching / 3);
  });
  return scores.reduce((sum, score) => sum + score, 0) / scores.length;
}

const oneLine = (text: string): string => text.replace(/[\n\t]/g, ' ').trim();

function settlePunctuation(text: string): string {
  const numeric = /\d,\d/.test(text);
  let result = text;
  for (const mark of PUNCTUATION) {
    const attached = text.includes(`${mark} `) || text.includes(` ${mark}`);
    result = result.replaceAll(mark, attached || numeric ? '' : ' ');
  }
  return result.replace(/\.(?!\d)/g, '');
}

function settleWords(text: string): string {
  const tokens = text.toLowerCase().split(/\s+/).filter(Boolean);
  return tokens
    .map((word) => DIGITS.get(word) ?? word)
    .filter((word) => !ARTICLES.has(word))
    .map((word) => EXPANDED.get(word) ?? word)
    .join(' ');
}

// A request as it arrives → a Sequence or a beam search that begins with one: tokenised prompt with image placeholders, the ids the Q-Former reads, digests of the
// pictures, resolved options. Layouts as the processors make them: image placeholders come first, even before bos; a prompt
// that already holds them all is taken as it is; checkpoints without a placeholder id get the same layout.

import { QFormerError, describe } from '../../errors.js';
import type { Checkpoint } from '../../io/checkpoint.js';
import { IncrementalDetokenizer } from '../../io/detokenizer.js';
import { TextTokenizer } from '../../io/tokenizer.js';
import { placeImageTokens } from '../../models/blip2.js';
import { BeamSearch } from '../scheduling/beam-search.js';
import type { SequenceGroup } from '../scheduling/group.js';
import { readPixels } from './image-features.js';
import { resolveParams } from '../params.js';
import type { EngineRequest } from '../protocol.js';
import { Ranking } from '../scheduling/ranking.js';
import { Sequence } from '../scheduling/sequence.js';

/** Makes sequences for one checkpoint. */
export class PromptBuilder {
  readonly #checkpoint: Checkpoint;
  readonly #tokenizer: TextTokenizer;
  readonly #qformerTokenizer: TextTokenizer | undefined;
  readonly #noTokens: Int32Array;

  /** Loads the tokenizers. Errors: IO, FORMAT. */
  constructor(checkpoint: Checkpoint) {
    this.#checkpoint = checkpoint;
    this.#tokenizer = TextTokenizer.load(checkpoint.tokenizerDir);
    this.#noTokens = rowsWithoutToken(checkpoint, this.#tokenizer);
    const { qformerTokenizerDir } = checkpoint;
    this.#qformerTokenizer = qformerTokenizerDir === undefined ? undefined : TextTokenizer.load(qformerTokenizerDir);
  }

  /** Errors: INVALID_ARGUMENT (options, an empty or too long prompt, pixels, invalid UTF-16), UNSUPPORTED (images). `maxContext`, `arrival` and `adapter`: see Engine and Sequence. */
  build(id: number, request: EngineRequest, maxContext: number, arrival: number, adapter?: string): SequenceGroup {
    const { config, generation } = this.#checkpoint;
    const params = resolveParams(request.params, generation);
    const images = (request.images ?? []).map(readPixels);
    if (images.length > 0 && config.vision === undefined) {
      throw new QFormerError('UNSUPPORTED', `a ${config.modelType} model reads no images`);
    }
    const ids = this.#promptIds(request.prompt, images.length > 0, maxContext);
    const placed = placeImageTokens(config, ids, images.length);
    const input = config.imageTokenId === undefined ? withoutIds(placed.ids, placed.imageRows) : placed.ids;
    const { text } = config;
    const sequence = new Sequence({
      id,
      ...(text.modelType === 't5'
        ? { encoderTokens: input, promptTokens: [text.decoderStartTokenId] }
        : { promptTokens: input }),
      imagePositions: placed.imageRows,
      images,
      ...(images.length > 0 && this.#instruction(request)),
      ...(adapter !== undefined && { adapter }),
      params,
      eosTokenIds: generation.eosTokenIds,
      badWordIds: params.badWords.flatMap((word) => (typeof word === 'string' ? this.#spellings(word) : [word])),
      noTokens: this.#noTokens,
      // BLIP-2 over OPT was trained on captions between a space and a newline; the reference strips them.
      trimText: config.vision !== undefined && config.text.modelType === 'opt',
      detokenizer: () => new IncrementalDetokenizer(this.#tokenizer, { skipSpecialTokens: true }),
      arrival,
    });
    if (request.candidates !== undefined) return new Ranking(sequence, this.#candidates(request));
    return params.numBeams > 1 ? new BeamSearch(sequence) : sequence;
  }

  /**
   * Ids of the candidates, as the model would write them: GPT-2's tokens begin with their space. LAVIS classifies by the loss of
   * what the tokenizer makes of a candidate: with T5 that ends in </s>, with LLaMA (whose bos it drops) it has no end.
   */
  #candidates({ candidates = [], prompt }: EngineRequest): number[][] {
    const { modelType } = this.#checkpoint.config.text;
    const isSpaced = modelType === 'opt' && !/\s$/u.test(String(prompt));
    if (candidates.length === 0) throw new QFormerError('INVALID_ARGUMENT', 'there are no candidates');
    return candidates.map((candidate) => {
      const text = isSpaced ? ` ${candidate.trimStart()}` : candidate;
      const ids = this.#tokenizer.encode(text, { addSpecialTokens: false });
      if (ids.length === 0)
        throw new QFormerError('INVALID_ARGUMENT', `candidate ${describe(candidate)} has no tokens`);
      return modelType === 't5' ? this.#tokenizer.encode(text) : ids;
    });
  }

  #promptIds(prompt: string | readonly number[], hasImages: boolean, maxContext: number): number[] {
    const { config } = this.#checkpoint;
    if (typeof prompt === 'string') {
      // Without any text the reference starts from bos alone, which need not be what the tokenizer puts in front.
      if (prompt === '' && hasImages && config.text.bosTokenId !== undefined) return [config.text.bosTokenId];
      if (prompt !== '') return this.#tokenizer.encode(prompt, { maxTokens: maxContext });
    } else if (Array.isArray(prompt)) {
      const wrong = prompt.find((id) => !Number.isSafeInteger(id) || id < 0 || id >= config.text.vocabSize);
      if (wrong !== undefined) {
        const message = `token ids must be integers in [0, ${config.text.vocabSize}), got ${describe(wrong)}`;
        throw new QFormerError('INVALID_ARGUMENT', message);
      }
      if (prompt.length > 0 || hasImages) return [...prompt];
    } else {
      throw new QFormerError('INVALID_ARGUMENT', `prompt must be a string or token ids, got ${describe(prompt)}`);
    }
    if (hasImages) return this.#tokenizer.encode('');
    throw new QFormerError('INVALID_ARGUMENT', 'the prompt is empty');
  }

  /** What the Q-Former reads: as LAVIS, a text beyond its positions loses its beginning. */
  #instruction({ prompt, instruction }: EngineRequest): { instructionIds?: number[] } {
    const tokenizer = this.#qformerTokenizer;
    if (tokenizer === undefined) return {};
    const own = typeof prompt === 'string' ? prompt : this.#tokenizer.decode(prompt, { skipSpecialTokens: true });
    const ids = tokenizer.encode(instruction ?? own);
    const excess = ids.length - this.#checkpoint.config.qformer!.maxPositionEmbeddings;
    if (excess > 0) ids.splice(1, excess); // behind [CLS]
    return { instructionIds: ids };
  }

  /** A word's ids with and without a space in front, since it may follow either. */
  #spellings(word: string): number[][] {
    const bare = this.#tokenizer.encode(word, { addSpecialTokens: false });
    const spaced = this.#tokenizer.encode(` ${word.trimStart()}`, { addSpecialTokens: false });
    const spellings = bare.join() === spaced.join() ? [bare] : [bare, spaced];
    return spellings.filter((ids) => ids.length > 0);
  }
}

/** The legacy layout has no id for an image row: -1 is in no vocabulary, so penalties and n-grams never see it. */
/** Embedding tables are padded to a round number of rows; what lies beyond the tokenizer was never trained and has no text. */
function rowsWithoutToken({ config, generation }: Checkpoint, { vocabSize }: TextTokenizer): Int32Array {
  const count = Math.max(0, config.text.vocabSize - vocabSize);
  const rows = Int32Array.from({ length: count }, (_, i) => vocabSize + i);
  return rows.filter((id) => !generation.eosTokenIds.includes(id));
}

function withoutIds(ids: readonly number[], rows: readonly number[]): number[] {
  const result = [...ids];
  for (const row of rows) result[row] = -1;
  return result;
}

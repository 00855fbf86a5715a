// The commands of `qformer` and what they take. Only the argument parser is loaded here; a command's code, and with it the
// library, comes in when the command runs, so `--help` and errors of usage answer at once.

import { Command, CommanderError, InvalidArgumentError } from 'commander';
import type { CommonFlags, InfoFlags } from './flags.js';
import { fail, oneLine, quietOnBrokenPipe } from './output.js';

const number = (value: string): number => {
  const parsed = Number(value);
  if (value.trim() === '' || !Number.isFinite(parsed)) throw new InvalidArgumentError(`'${value}' is not a number.`);
  return parsed;
};

const collect = (value: string, earlier: string[] = []): string[] => [...earlier, value];

const modelFlags = (command: Command): Command =>
  deviceFlags(
    languageModelFlag(command.option('--model <dir>', 'checkpoint folder (default: the demonstration model)')),
  );

const languageModelFlag = (command: Command): Command =>
  command.option('--language-model <dir>', 'folder of the language model, where the checkpoint is a visual part only');

const retrievalFlags = (command: Command): Command =>
  deviceFlags(command.requiredOption('--model <dir>', 'folder of a retrieval checkpoint')).option(
    '--json',
    'print JSON and nothing else',
  );

const deviceFlags = (command: Command): Command =>
  command
    .option('--device <device>', 'cpu, cuda, cuda:N or auto', 'auto')
    .option('--dtype <dtype>', 'type of the weights in memory: auto, f32, f16 or bf16', 'auto')
    .option('--quantize <type>', 'store linear layers as int8 or int4')
    .option('--quantize-activations', 'round what those layers are multiplied with to 8 bits')
    .option('--kv-cache-tokens <n>', 'tokens in the cache of keys and values', number)
    .option('--no-memory-check', 'load even where the memory looks too small')
    .option('--threads <n>', 'CPU threads', number);

const generateFlags = (command: Command): Command =>
  modelFlags(command)
    .option('--max-new-tokens <n>', 'most tokens to generate', number)
    .option('--temperature <t>', '0 takes the most likely token', number)
    .option('--top-k <k>', 'sample among the k most likely tokens', number)
    .option('--top-p <p>', 'sample among the most likely tokens that together reach p', number)
    .option('--num-beams <n>', 'beam search with n beams; 1: none', number)
    .option('--length-penalty <p>', 'of a beam search: above 0 long answers gain', number)
    .option('--num-return-sequences <n>', 'of a beam search: how many answers to print, with scores', number)
    .option('--seed <n>', 'makes sampling repeatable', number)
    .option('--adapter <dir>', 'PEFT LoRA adapter to load and use')
    .option('--raw', 'the text is the whole prompt, no template')
    .option('--json', 'print one JSON object per result and nothing else');

function program(version: string): Command {
  const root = new Command('qformer')
    .description('Vision-language models of the BLIP-2 family: captions and answers about images.')
    .version(version, '-v, --version')
    .showHelpAfterError(false)
    .exitOverride()
    .configureOutput({ outputError: (text, write) => write(usageError(text)) });

  generateFlags(root.command('demo'))
    .description('an English caption and a Chinese answer about a sample image, with timings')
    .argument('[image]', 'image file instead of the sample')
    .action(async (image: string | undefined, flags: CommonFlags) => (await import('./demo.js')).demo(image, flags));

  generateFlags(root.command('caption'))
    .description('describe images')
    .argument('<image...>', 'image files')
    .option('--lang <lang>', 'language of the built-in prompt, such as en or zh')
    .option('--prompt <text>', 'prompt instead of the built-in one')
    .action(async (images: string[], flags: CommonFlags) => (await import('./ask.js')).caption(images, flags));

  generateFlags(root.command('answer'))
    .description('answer a question about an image')
    .argument('<image>', 'image file')
    .argument('<question>', 'the question')
    .action(async (image: string, text: string, flags: CommonFlags) =>
      (await import('./ask.js')).answer(image, text, flags),
    );

  modelFlags(root.command('rank'))
    .description('put candidates in order by how likely the model is to answer with them')
    .argument('<image>', 'image file')
    .argument('<question>', 'the question')
    .argument('<candidate...>', 'possible answers')
    .option('--adapter <dir>', 'PEFT LoRA adapter to load and use')
    .option('--by <number>', 'sum: log-probability of the whole candidate; mean: per token', 'sum')
    .option('--raw', 'the question is the whole prompt, no template')
    .option('--json', 'print one JSON object and nothing else')
    .action(async (image: string, question: string, candidates: string[], flags: CommonFlags) =>
      (await import('./ask.js')).rank(image, question, candidates, flags),
    );

  generateFlags(root.command('chat'))
    .description('talk about an image; one message per line, an empty line or end of input ends it')
    .argument('<image>', 'image file')
    .option('--system <text>', 'text before the first turn')
    .action(async (image: string, flags: CommonFlags) => (await import('./chat.js')).chat(image, flags));

  retrievalFlags(root.command('index'))
    .description('compute the vectors of images and write them to a file that `search` reads')
    .argument('<image...>', 'image files')
    .requiredOption('--output <file>', 'the file to write')
    .action(async (images: string[], flags: CommonFlags) => (await import('./search.js')).index(images, flags));

  retrievalFlags(root.command('search'))
    .description('find the images of an index that fit a text, or that are like an image')
    .argument('<index>', 'file written by `index`')
    .argument('<query>', 'a text, or with --image an image file')
    .option('--top <n>', 'most results', number, 10)
    .option('--rerank [n]', 'put the n best (default: --top) in order by the matching head', number)
    .option('--image', 'the query is an image file')
    .action(async (file: string, query: string, flags: CommonFlags) =>
      (await import('./search.js')).search(file, query, flags),
    );

  generateFlags(root.command('eval'))
    .description(
      'answer the lines of a JSONL file (image, question, references) and score the answers; goes on where it stopped',
    )
    .argument('<file>', 'one JSON object per line; without a question a caption is asked for')
    .option('--lang <lang>', 'language of the built-in caption prompt')
    .option('--output <file>', 'where results are kept (default: the file with .results behind its name)')
    .action(async (file: string, flags: CommonFlags) => (await import('./eval.js')).evaluateFile(file, flags));

  root
    .command('doctor')
    .description('what this machine offers and which devices are used')
    .option('--json', 'print a JSON object')
    .action(async (flags: { json?: boolean }) => (await import('./report.js')).printDoctor(flags));

  languageModelFlag(root.command('info'))
    .description('parts, parameters, bytes and memory of a checkpoint folder, without loading its weights')
    .argument('[dir]', 'checkpoint folder (default: the demonstration model)')
    .option('--dtype <dtype>', 'type of the weights in memory: auto, f32, f16 or bf16', 'auto')
    .option('--quantize <type>', 'linear layers as int8 or int4')
    .option('--kv-cache-tokens <n>', 'tokens in the cache of keys and values', number)
    .option('--adapter <dir>', 'count a PEFT LoRA adapter too; may be given several times', collect)
    .option('--json', 'print a JSON object')
    .action(async (dir: string | undefined, flags: InfoFlags) => (await import('./report.js')).printInfo(dir, flags));

  for (const command of root.commands) command.exitOverride().configureOutput(root.configureOutput());
  return root;
}

const usageError = (text: string): string => `error INVALID_ARGUMENT: ${oneLine(text.replace(/^error: /, ''))}\n`;

/** Runs the command line. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted. */
export async function run(argv: readonly string[], version: string): Promise<void> {
  quietOnBrokenPipe();
  try {
    const command = program(version);
    if (argv.length <= 2) return void process.stdout.write(command.helpInformation());
    await command.parseAsync([...argv]);
  } catch (error) {
    if (!(error instanceof CommanderError)) return fail(error);
    process.exitCode = error.exitCode === 0 ? 0 : 2;
  }
}

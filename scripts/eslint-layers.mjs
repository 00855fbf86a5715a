// The import rule of the library: which layer of lib/ may import which.
//
// `qformer/layers` reports every import of a file in lib/ that its layer is not allowed. Values and types are separate
// columns: a type import loads nothing, so files that must stay free of native code may still name a native type.
// In engine/, scheduling/ is bookkeeping free of tensors and execution/ runs what it decides.
// A layer that is missing in a list cannot be imported; a file that belongs to no layer is reported as such.
import { dirname, join, normalize, relative, sep } from 'node:path';

/** Layers by file, first match wins. Paths are relative to lib/, without extension. */
const LAYERS = [
  ['errors', /^errors$/],
  ['package-root', /^package-root$/],
  ['tensor', /^tensor\//],
  ['nn', /^nn\//],
  ['models', /^models\//],
  ['io', /^io\//],
  ['protocol', /^engine\/(protocol|params|task)$/],
  ['worker', /^engine\/worker$/],
  ['client', /^engine\/client$/],
  ['scheduling', /^engine\/scheduling\//],
  ['execution', /^engine\/execution\//],
  ['cli', /^cli\//],
  ['main', /^(eval\/)?[^/]+$/],
];

const BASE = ['errors', 'package-root'];
const PURE = [...BASE, 'io', 'protocol', 'scheduling'];
const MAIN_THREAD = [...BASE, 'io', 'protocol', 'client', 'main'];
const NATIVE = [...BASE, 'tensor', 'nn', 'models', 'io'];

/** What each layer may load (values) and, on top of that, name (types only). */
const ALLOWED = {
  errors: { values: [] },
  'package-root': { values: ['errors'] },
  io: { values: ['errors', 'io'] },
  tensor: { values: [...BASE, 'tensor'] },
  nn: { values: [...BASE, 'tensor', 'nn'] },
  models: { values: NATIVE },
  protocol: { values: ['errors', 'io', 'protocol'] },
  scheduling: { values: PURE, types: ['execution'] },
  execution: { values: [...NATIVE, 'protocol', 'scheduling', 'execution'] },
  worker: { values: [...NATIVE, 'protocol', 'scheduling', 'execution', 'worker'] },
  client: { values: [...BASE, 'io', 'protocol', 'client'] },
  main: { values: MAIN_THREAD, types: ['tensor'] },
  cli: { values: [...MAIN_THREAD, 'cli'] },
};

/** Packages with one owner: only the given file may import them. */
const OWNED_PACKAGES = { 'node-gyp-build': /^tensor\/binding$/ };

export function layerOf(file) {
  return LAYERS.find(([, pattern]) => pattern.test(file))?.[0];
}

/** Path of `filename` below the lib/ folder without extension, or undefined when it lies elsewhere. */
function insideLib(filename, root) {
  const path = relative(join(root, 'lib'), filename).split(sep).join('/');
  return path.startsWith('..') ? undefined : path.replace(/\.(ts|js)$/, '');
}

const rule = {
  meta: { type: 'problem', schema: [], messages: { layer: '{{why}}' } },
  create(context) {
    const file = insideLib(context.filename, context.cwd);
    if (file === undefined) return {};
    const layer = layerOf(file);
    if (layer === undefined) {
      const why = `lib/${file} belongs to no layer: name one in scripts/eslint-layers.mjs`;
      return { Program: (node) => context.report({ node, messageId: 'layer', data: { why } }) };
    }

    function check(node, specifier, typeOnly) {
      const report = (why) => context.report({ node, messageId: 'layer', data: { why } });
      const owner = OWNED_PACKAGES[specifier];
      if (owner && !owner.test(file)) report(`only lib/tensor/binding.ts may import '${specifier}'`);
      if (!specifier.startsWith('.')) return;

      const target = insideLib(normalize(join(dirname(context.filename), specifier)), context.cwd);
      if (target === undefined) return report(`lib/ must not import '${specifier}' from outside lib/`);
      const targetLayer = layerOf(target);
      const { values, types = [] } = ALLOWED[layer];
      if (values.includes(targetLayer) || (typeOnly && types.includes(targetLayer))) return;
      report(`layer '${layer}' must not import ${typeOnly ? 'types of ' : ''}layer '${targetLayer}' (lib/${target})`);
    }

    const isTypeOnly = (node) =>
      node.importKind === 'type' ||
      node.exportKind === 'type' ||
      (node.specifiers?.length > 0 && node.specifiers.every((one) => (one.importKind ?? one.exportKind) === 'type'));
    const checkStatement = (node) => node.source && check(node, node.source.value, isTypeOnly(node));
    const checkCall = (node, argument) => argument?.type === 'Literal' && check(node, String(argument.value), false);

    return {
      ImportDeclaration: checkStatement,
      ExportNamedDeclaration: checkStatement,
      ExportAllDeclaration: checkStatement,
      TSImportType: (node) => check(node, String((node.argument.literal ?? node.argument).value), true),
      ImportExpression: (node) => checkCall(node, node.source),
      'CallExpression[callee.name="require"]': (node) => checkCall(node, node.arguments[0]),
      'CallExpression[callee.object.name="require"][callee.property.name="resolve"]': (node) =>
        checkCall(node, node.arguments[0]),
    };
  },
};

export default { rules: { layers: rule } };

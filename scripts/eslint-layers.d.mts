// Types of eslint-layers.mjs for the test that checks it.
export function layerOf(file: string): string | undefined;
declare const plugin: { rules: { layers: object } };
export default plugin;

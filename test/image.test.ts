// Image inputs: pixels equal to Pillow's for every stored file, every form of input, and every way in which one can be wrong.

import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { crc32, deflateSync } from 'node:zlib';

import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';

import { isQFormerError } from '../lib/errors.js';
import { loadImage, type ImageInput, type ImageOptions, type RawImage } from '../lib/io/image.js';
import { parseSafetensorsHeader } from '../lib/io/safetensors.js';
import { expectRejection } from './support/expect-error.js';
import { propertyRuns } from './support/property-runs.js';

interface PreprocessCase {
  file: string;
  prefix: string;
  rgb_shape_hwc: [number, number, number];
  rgb_sha256: string;
}

const folder = fileURLToPath(new URL('./fixtures/preprocess/', import.meta.url));
const { cases } = JSON.parse(readFileSync(join(folder, 'expected.json'), 'utf8')) as { cases: PreprocessCase[] };
const stored = readFileSync(join(folder, 'expected.safetensors'));
const tensors = parseSafetensorsHeader(stored, stored.length, 'expected.safetensors');
const image = (name: string) => join(folder, 'images', name);
const read = (name: string) => readFileSync(image(name));

function expectedRgb({ prefix }: PreprocessCase): Uint8Array | undefined {
  const entry = tensors.get(`${prefix}rgb`);
  return entry && stored.subarray(entry.offset, entry.offset + entry.bytes);
}

function worst(a: Uint8Array, b: Uint8Array): number {
  let max = 0;
  for (let i = 0; i < b.length; i++) max = Math.max(max, Math.abs(a[i]! - b[i]!));
  return max;
}

const sha256 = (data: Uint8Array) => createHash('sha256').update(data).digest('hex');

describe('the pixels of a stored file', () => {
  test('are those of 25 files', () => expect(cases.length).toBe(25));

  test.each(cases.filter(({ file }) => file.endsWith('.png')))('$file are exactly those of Pillow', async (wanted) => {
    const { data, width, height } = await loadImage(join(folder, wanted.file));
    expect([height, width, 3]).toEqual(wanted.rgb_shape_hwc);
    expect(sha256(data)).toBe(wanted.rgb_sha256);
  });

  // decoders may round the inverse DCT and the colour conversion differently: one step each
  test.each(cases.filter(({ file }) => file.endsWith('.jpg')))('$file are those of Pillow within 2', async (wanted) => {
    const { data, width, height } = await loadImage(join(folder, wanted.file));
    expect([height, width, 3]).toEqual(wanted.rgb_shape_hwc);
    expect(data.length).toBe(width * height * 3);
    expect(worst(data, expectedRgb(wanted)!)).toBeLessThanOrEqual(2);
  });
});

describe('EXIF orientation', () => {
  const pixel = ({ data, width }: RawImage, x: number, y: number) =>
    data.subarray((y * width + x) * 3, (y * width + x) * 3 + 3);
  test('is ignored unless asked for', async () => {
    const { width, height } = await loadImage(image('exif_orientation6.jpg'));
    expect([width, height]).toEqual([160, 118]);
  });
  test('6 turns by 90° clockwise when asked for', async () => {
    const plain = await loadImage(image('exif_orientation6.jpg'));
    const turned = await loadImage(image('exif_orientation6.jpg'), { exif: true });
    expect([turned.width, turned.height]).toEqual([118, 160]);
    expect(pixel(turned, 0, 0)).toEqual(pixel(plain, 0, 117));
    expect(pixel(turned, 117, 7)).toEqual(pixel(plain, 7, 0));
  });
  test('3 turns by 180° when asked for', async () => {
    const plain = await loadImage(image('exif_orientation3.jpg'));
    const turned = await loadImage(image('exif_orientation3.jpg'), { exif: true });
    expect(pixel(turned, 3, 5)).toEqual(pixel(plain, 156, 112));
  });
});

describe('an image may be given as', () => {
  const bytes = read('odd.png');
  const base64 = bytes.toString('base64');
  const percent = [...bytes].map((byte) => `%${byte.toString(16).padStart(2, '0')}`).join('');
  const file = pathToFileURL(image('odd.png'));
  test.each<[string, ImageInput]>([
    ['a path', image('odd.png')],
    ['a file URL object', file],
    ['a file URL string', file.href],
    ['a Buffer', bytes],
    ['a Uint8Array with an offset', new Uint8Array([...[1, 2, 3], ...bytes]).subarray(3)],
    ['a Blob', new Blob([bytes], { type: 'image/png' })],
    ['a Blob without a type', new Blob([bytes])],
    ['a File', new File([bytes], 'odd.png')],
    ['a data URL', `data:image/png;base64,${base64}`],
    ['a data URL with more parameters', `DATA:image/png;charset=x;BASE64,${base64}`],
    ['a data URL without a type', `data:;base64,${base64}`],
    ['a data URL without padding', `data:image/png;base64,${base64.replace(/=+$/, '')}`],
    ['a data URL with line breaks', `data:image/png;base64,${base64.replace(/(.{76})/g, '$1\r\n')}`],
    ['a data URL with escapes', `data:image/png;base64,${encodeURIComponent(base64)}`],
    ['a percent-encoded data URL', `data:image/png,${percent}`],
    ['a data URL object', new URL(`data:image/png;base64,${base64}`)],
  ])('%s', async (_name, input) => {
    const { data, width, height } = await loadImage(input);
    expect([width, height]).toEqual([123, 77]);
    expect(sha256(data)).toBe(cases[0]!.rgb_sha256);
  });

  test.each([
    [1, [10, 20], [10, 10, 10, 20, 20, 20]],
    [3, [1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]],
    [4, [1, 2, 3, 0, 4, 5, 6, 255], [1, 2, 3, 4, 5, 6]],
  ] as const)('pixels of %i channels', async (channels, data, expected) => {
    for (const given of [Uint8Array.from(data), Uint8ClampedArray.from(data)]) {
      const result = await loadImage({ data: given, width: 2, height: 1, channels });
      expect([...result.data]).toEqual(expected);
      expect(result.data.buffer).not.toBe(given.buffer);
    }
  });

  test('anything, and its result can be transferred without harm to the input', async () => {
    const input = read('odd.png');
    for (const given of [input, { data: new Uint8Array(3), width: 1, height: 1, channels: 3 as const }]) {
      const { data } = await loadImage(given);
      expect(data.byteLength).toBe(data.buffer.byteLength);
      structuredClone(data.buffer, { transfer: [data.buffer] });
      expect(data.length).toBe(0);
    }
    expect(sha256((await loadImage(input)).data)).toBe(cases[0]!.rgb_sha256);
  });
});

/** A gray PNG of 1 bit per pixel, all black: large sizes take few bytes. */
function blackPng(width: number, height: number): Buffer {
  const chunk = (type: string, data: Buffer): Buffer => {
    const body = Buffer.concat([Buffer.from(type, 'latin1'), data]);
    const [length, checksum] = [Buffer.alloc(4), Buffer.alloc(4)];
    length.writeUInt32BE(data.length);
    checksum.writeUInt32BE(crc32(body));
    return Buffer.concat([length, body, checksum]);
  };
  const header = Buffer.alloc(13);
  header.writeUInt32BE(width, 0);
  header.writeUInt32BE(height, 4);
  header[8] = 1;
  const rows = deflateSync(Buffer.alloc((1 + Math.ceil(width / 8)) * height));
  const signature = Buffer.from('\x89PNG\r\n\x1a\n', 'latin1');
  return Buffer.concat([signature, chunk('IHDR', header), chunk('IDAT', rows), chunk('IEND', Buffer.alloc(0))]);
}

describe('limits', () => {
  test('refuse an image of 20000 × 20000 pixels before it is decoded', async () => {
    const error = await expectRejection(
      loadImage(blackPng(20_000, 20_000)),
      'INVALID_ARGUMENT',
      '20000 × 20000 pixels',
    );
    expect(error.details).toEqual({ width: 20_000, height: 20_000, maxPixels: 89_478_485 });
  });
  test('on pixels hold exactly', async () => {
    expect((await loadImage(blackPng(7, 11), { maxPixels: 77 })).data.length).toBe(231);
    await expectRejection(
      loadImage(blackPng(7, 11), { maxPixels: 76 }),
      'INVALID_ARGUMENT',
      '7 × 11 pixels, more than the limit of 76',
    );
    const pixels = { data: new Uint8Array(77), width: 7, height: 11, channels: 1 as const };
    await expectRejection(loadImage(pixels, { maxPixels: 76 }), 'INVALID_ARGUMENT', 'more than the limit of 76');
  });
  test.each<[string, (bytes: Buffer) => ImageInput]>([
    ['path', () => image('odd.png')],
    ['Buffer', (bytes) => bytes],
    ['Blob', (bytes) => new Blob([bytes])],
    ['data URL', (bytes) => `data:image/png;base64,${bytes.toString('base64')}`],
  ])('on bytes hold exactly for a %s', async (_name, make) => {
    const bytes = read('odd.png');
    expect((await loadImage(make(bytes), { maxBytes: bytes.length })).width).toBe(123);
    await expectRejection(
      loadImage(make(bytes), { maxBytes: bytes.length - 1 }),
      'INVALID_ARGUMENT',
      /bytes, more than the limit/,
    );
  });
});

describe('what is no image is refused:', () => {
  const root = mkdtempSync(join(tmpdir(), 'qformer-image-'));
  afterAll(() => rmSync(root, { recursive: true, force: true }));
  const fileOf = (name: string, content: string | Uint8Array) => {
    writeFileSync(join(root, name), content);
    return join(root, name);
  };
  const svg = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>';

  test.each<[string, () => ImageInput, RegExp]>([
    [
      'a text file named .png',
      () => fileOf('text.png', 'this is no image at all'),
      /text.png: not an image of a known format/,
    ],
    ['an empty file', () => fileOf('empty.png', ''), /empty.png: is empty/],
    ['an empty Buffer', () => new Uint8Array(0), /image: is empty/],
    ['an empty Blob', () => new Blob([]), /Blob: is empty/],
    ['a Blob of text', () => new Blob(['hello'], { type: 'text/plain' }), /not an image/],
    ['an SVG', () => Buffer.from(svg), /not an image of a known format/],
    ['a PNG cut in its header', () => read('odd.png').subarray(0, 20), /cannot be decoded as png/],
    ['a PNG cut in its data', () => read('odd.png').subarray(0, 9000), /cannot be decoded as png/],
    [
      'a JPEG cut in its data',
      () => read('baseline.jpg').subarray(0, 3000),
      /cannot be decoded as jpeg \(.*premature end/,
    ],
    ['a PNG signature alone', () => read('odd.png').subarray(0, 8), /cannot be decoded as png/],
    ['a WebP signature alone', () => Buffer.from('RIFF\0\0\0\0WEBPVP8 '), /cannot be decoded as webp/],
  ])('%s is a FORMAT error', async (_name, make, message) => {
    await expectRejection(loadImage(make()), 'FORMAT', message);
  });

  test.each<[string, () => ImageInput, RegExp]>([
    ['a path to nothing', () => join(root, 'absent.png'), /absent.png: cannot be read \(ENOENT\)/],
    ['a directory', () => root, /is a directory/],
    ['a path below a file', () => join(fileOf('f', 'x'), 'y'), /ENOTDIR/],
    ['a device', () => '/dev/zero', /not a regular file/],
  ])('%s is an IO error', async (_name, make, message) => {
    await expectRejection(loadImage(make()), 'IO', message);
  });

  test('a named pipe is an IO error and does not block', async () => {
    execFileSync('mkfifo', [join(root, 'pipe')]);
    await expectRejection(loadImage(join(root, 'pipe')), 'IO', 'not a regular file');
  });

  const pixels = (more: object) =>
    ({ data: new Uint8Array(12), width: 2, height: 2, channels: 3, ...more }) as ImageInput;
  test.each<[string, unknown, RegExp]>([
    ['nothing', undefined, /image must be a path, URL/],
    ['null', null, /got null/],
    ['a number', 5, /got 5/],
    ['an array', [1, 2], /an array of 2/],
    ['an empty object', {}, /an object \(Object\)/],
    ['an ArrayBuffer', new ArrayBuffer(8), /an object \(ArrayBuffer\)/],
    ['an empty path', '', /path is empty/],
    ['a path with NUL', 'a\0.png', /NUL/],
    ['an http URL', 'http://localhost/x.png', /not allowed \(set allowHttp\)/],
    ['an https URL object', new URL('https://localhost/x.png'), /not allowed/],
    ['an ftp URL', 'ftp://localhost/x.png', /ftp: are not accepted/],
    ['a URL that is none', 'http://', /URL is not valid/],
    ['a file URL of another host', 'file://host/x.png', /not a usable file URL/],
    ['a data URL without comma', 'data:image/png;base64', /has no comma/],
    ['a data URL of text', 'data:text/plain;base64,aGk=', /holds 'text\/plain', not an image/],
    ['a data URL that is not base64', 'data:image/png;base64,a*b=', /not valid base64/],
    ['a data URL of broken base64', 'data:image/png;base64,abcde', /not valid base64/],
    ['a data URL with a broken escape', 'data:image/png,%4', /two hexadecimal digits/],
    ['pixels of width 0', pixels({ width: 0 }), /width must be a positive whole number, got 0/],
    ['pixels of negative height', pixels({ height: -2 }), /height must be a positive/],
    ['pixels of fractional width', pixels({ width: 1.5 }), /width must be a positive/],
    ['pixels of 2 channels', pixels({ channels: 2 }), /channels must be 1, 3 or 4, got 2/],
    ['pixels without channels', pixels({ channels: undefined }), /channels must be/],
    ['pixels with too little data', pixels({ data: new Uint8Array(11) }), /must have 2 × 2 × 3 bytes, got 11/],
    ['pixels with too much data', pixels({ data: new Uint8Array(13) }), /got 13/],
    [
      'pixels of floats',
      pixels({ data: new Float32Array(12) }),
      /data must be a Uint8Array, got an object \(Float32Array\)/,
    ],
    ['pixels of an absurd size', pixels({ width: 2 ** 52, height: 2 ** 52 }), /more than the limit/],
  ])('%s is an INVALID_ARGUMENT', async (_name, input, message) => {
    await expectRejection(loadImage(input as ImageInput), 'INVALID_ARGUMENT', message);
  });

  test.each<[unknown, RegExp]>([
    [{ maxPixel: 5 }, /unknown option 'maxPixel' \(did you mean 'maxPixels'\?\)/],
    [{ maxPixels: 0 }, /maxPixels must be a positive whole number, got 0/],
    [{ maxBytes: -1 }, /maxBytes must be/],
    [{ maxBytes: '9' }, /maxBytes must be/],
    [{ exif: 1 }, /exif must be true or false/],
    [null, /options must be an object/],
  ])('the options %j are an INVALID_ARGUMENT', async (options, message) => {
    await expectRejection(loadImage(image('odd.png'), options as ImageOptions), 'INVALID_ARGUMENT', message);
  });

  test('a damaged file gives a FORMAT error or pixels of the stated size, nothing else', async () => {
    const files = ['odd.png', 'palette.png', 'interlaced.png', 'baseline.jpg', 'progressive.jpg', 'cmyk.jpg'].map(read);
    const damage = fc.array(fc.tuple(fc.nat(), fc.nat(255)), { minLength: 1, maxLength: 6 });
    await fc.assert(
      fc.asyncProperty(fc.constantFrom(...files), damage, fc.nat(), async (original, edits, cut) => {
        const bytes = Buffer.from(original.subarray(0, Math.max(1, cut % (original.length * 3))));
        for (const [position, value] of edits) bytes[position % bytes.length] = value;
        try {
          const { data, width, height } = await loadImage(bytes, { maxPixels: 1e6 });
          expect(data.length).toBe(width * height * 3);
        } catch (error) {
          if (!isQFormerError(error)) throw error;
          expect(['FORMAT', 'INVALID_ARGUMENT']).toContain(error.code);
        }
      }),
      propertyRuns(400),
    );
  });
});

describe('an aborted signal', () => {
  test('before the start gives ABORTED', async () => {
    await expectRejection(loadImage(image('odd.png'), { signal: AbortSignal.abort() }), 'ABORTED', 'aborted');
  });
  test('while loading gives ABORTED', async () => {
    const controller = new AbortController();
    const loading = loadImage(image('large.png'), { signal: controller.signal });
    controller.abort();
    await expectRejection(loading, 'ABORTED', 'aborted');
  });
});

describe('over http, when allowed,', () => {
  let server: Server;
  let base: string;
  beforeAll(async () => {
    server = createServer((request, response) => {
      if (request.url === '/image.png') response.end(read('odd.png'));
      else if (request.url === '/text') response.end('no image');
      else if (request.url === '/moved') response.writeHead(302, { location: '/image.png' }).end();
      else if (request.url === '/endless') {
        const timer = setInterval(() => response.write(Buffer.alloc(65536)), 1);
        response.on('close', () => clearInterval(timer));
      } else if (request.url === '/silent') return;
      else response.writeHead(404).end();
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    base = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  });
  afterAll(() => {
    server.closeAllConnections();
    server.close();
  });
  const fetched = (path: string, options: ImageOptions = {}) => loadImage(base + path, { allowHttp: true, ...options });

  test('an image is fetched, through a redirection too', async () => {
    for (const path of ['/image.png', '/moved']) expect((await fetched(path)).width).toBe(123);
  });
  test('an error of the server is an IO error', async () => {
    await expectRejection(fetched('/absent'), 'IO', 'answered 404');
  });
  test('text is a FORMAT error', async () => {
    await expectRejection(fetched('/text'), 'FORMAT', 'not an image');
  });
  test('a body beyond the limit is cut off', async () => {
    await expectRejection(
      fetched('/endless', { maxBytes: 200_000 }),
      'INVALID_ARGUMENT',
      'more than the limit of 200000',
    );
    await expectRejection(fetched('/image.png', { maxBytes: 99 }), 'INVALID_ARGUMENT', 'more than the limit of 99');
  });
  test('silence is an IO error after the given time', async () => {
    await expectRejection(fetched('/silent', { httpTimeout: 50 }), 'IO', 'no answer within 50 ms');
  });
  test('an unreachable server is an IO error', async () => {
    await expectRejection(loadImage('http://127.0.0.1:1/x.png', { allowHttp: true }), 'IO', 'cannot be fetched');
  });
  test('aborting gives ABORTED', async () => {
    const controller = new AbortController();
    const loading = fetched('/silent', { signal: controller.signal });
    setTimeout(() => controller.abort(), 20);
    await expectRejection(loading, 'ABORTED', 'aborted');
  });
});

// The emulated GPU with its checks and without are two builds of the same kernels: they differ in what they judge, not in what they
// compute.

import { describe, expect, it } from 'vitest';
import { expectDevices, runs, testDevices } from './support/devices.js';
import { bytesOf, runTogether, withEngine } from './support/engine-models.js';
import { plainRequests, shortened } from './support/reference-requests.js';

expectDevices();

const MODELS = ['instructblip-flant5-tiny', 'blip2-opt-tiny'];
const devices = ['emulated', 'emulated-unchecked'];
const dtypes = runs.filter(({ device }) => device === devices[0]).map(({ dtype }) => dtype);

describe.runIf(devices.every((device) => testDevices.includes(device)))('the emulated GPU', () => {
  it.each(MODELS.flatMap((name) => dtypes.map((dtype) => ({ name, dtype }))))(
    'gives the same bytes with and without its checks: $name in $dtype',
    async ({ name, dtype }) => {
      const requests = shortened(await plainRequests(name), 2, 2).map(({ request }) => ({
        ...request,
        params: { ...request.params, logprobs: 3 },
      }));
      const bytes: string[][] = [];
      for (const device of devices) {
        await withEngine(name, { device, dtype }, (loaded) => {
          bytes.push(runTogether(loaded, requests).map(bytesOf));
        });
      }
      expect(bytes[1]).toEqual(bytes[0]);
    },
  );
});

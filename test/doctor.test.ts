// The report on the machine: from the library and from the command line.

import { arch, platform } from 'node:os';
import { describe, expect, it } from 'vitest';
import { doctor } from '../lib/doctor.js';
import { qformer } from './support/cli-process.js';

describe('doctor', () => {
  it('finds the CPU with its instruction set and its threads', async () => {
    const report = await doctor();
    expect(report).toMatchObject({ platform: platform(), arch: arch(), node: process.versions.node });
    expect(report.native.error).toBeUndefined();
    const cpu = report.native.devices.find(({ name }) => name === 'cpu');
    expect(cpu?.level).toMatch(/\w/);
    expect(cpu?.threads).toBeGreaterThanOrEqual(1);
    expect(cpu?.memory).toBeGreaterThan(2 ** 20);
  });

  it('says why CUDA is not used', async () => {
    const report = await doctor();
    if (report.native.devices.some(({ name }) => name.startsWith('cuda'))) return; // it is used
    const cuda = report.unused.find(({ device }) => device === 'cuda');
    expect(cuda?.reason).toMatch(/NVIDIA driver|CUDA is supported on Linux only/);
  });

  it('prints rows for people and an object with --json', async () => {
    const text = await qformer(['doctor']);
    expect(text.stdout).toMatch(/platform +\w+-\w+\n[^]*device cpu +.*thread[^]*(no|device) cuda +\w/);
    expect(text).toMatchObject({ stderr: '', code: 0 });
    const { stdout } = await qformer(['doctor', '--json']);
    expect(JSON.parse(stdout)).toMatchObject({ node: process.versions.node, unused: expect.any(Array) });
  });
});

// The tensor API: `import { Tensor, ops, scope } from 'qformer/tensor'`. Usable on its own, on any thread.

export * as ops from './ops.js';
export type {
  Activation,
  LinearOptions,
  Mask,
  Math,
  Norm,
  QuantizedWeight,
  QuantLinearOptions,
  QuantMath,
} from './ops.js';
export { Tensor, liveTensors, type TensorOptions } from './tensor.js';
export { scope, keep } from './scope.js';
export { Graph, record } from './graph.js';
export { MappedFile, devices, unusedDevices, setThreads, getThreads, trimMemory } from './file.js';
export { dtypeSize, type Dtype } from './dtype.js';
export type { DeviceInfo, TypedArray, UnusedDevice } from './binding.js';
export { QFormerError, isQFormerError, type ErrorCode } from '../errors.js';

// The addon: one line per function that JavaScript can call. State lives in an Environment per JavaScript environment,
// so the addon works in any number of worker threads.
#include "cpu/cpu_backend.h"
#include "napi/bind.h"
#include "napi/tensors.h"

namespace qformer::napi {
namespace {

void bind_tensors(Napi::Env env, Environment& environment, Napi::Object exports) {
  bind<&create>(env, environment, exports, "create");
  bind<&from_data>(env, environment, exports, "fromData");
  bind<&write>(env, environment, exports, "write");
  bind<&read>(env, environment, exports, "read");
  bind<&shape_of>(env, environment, exports, "shapeOf");
  bind<&dtype_of>(env, environment, exports, "dtypeOf");
  bind<&device_of>(env, environment, exports, "deviceOf");
  bind<&is_dense>(env, environment, exports, "isDense");
  bind<&is_live>(env, environment, exports, "isLive");
  bind<&dispose>(env, environment, exports, "dispose");
  bind<&live_tensors>(env, environment, exports, "liveTensors");
  bind<&reshape>(env, environment, exports, "reshape");
  bind<&slice>(env, environment, exports, "slice");
  bind<&select>(env, environment, exports, "select");
  bind<&transpose>(env, environment, exports, "transpose");
  bind<&open_scope>(env, environment, exports, "openScope");
  bind<&close_scope>(env, environment, exports, "closeScope");
  bind<&keep>(env, environment, exports, "keep");
}

void bind_resources(Napi::Env env, Environment& environment, Napi::Object exports) {
  bind<&graph_begin>(env, environment, exports, "graphBegin");
  bind<&graph_end>(env, environment, exports, "graphEnd");
  bind<&graph_replay>(env, environment, exports, "graphReplay");
  bind<&graph_ops>(env, environment, exports, "graphOps");
  bind<&graph_dispose>(env, environment, exports, "graphDispose");
  bind<&file_open>(env, environment, exports, "fileOpen");
  bind<&file_size>(env, environment, exports, "fileSize");
  bind<&file_bytes>(env, environment, exports, "fileBytes");
  bind<&file_tensor>(env, environment, exports, "fileTensor");
  bind<&file_close>(env, environment, exports, "fileClose");
  bind<&list_devices>(env, environment, exports, "listDevices");
  bind<&list_unused_devices>(env, environment, exports, "listUnusedDevices");
  bind<&set_threads>(env, environment, exports, "setThreads");
  bind<&get_threads>(env, environment, exports, "getThreads");
  bind<&trim_memory>(env, environment, exports, "trimMemory");
  bind<&set_error_class>(env, environment, exports, "setErrorClass");
}

void bind_ops(Napi::Env env, Environment& environment, Napi::Object exports) {
  bind<&ops::linear>(env, environment, exports, "linear");
  bind<&ops::gated_linear>(env, environment, exports, "gatedLinear");
  bind<&ops::qkv_append>(env, environment, exports, "qkvAppend");
  bind<&ops::quantize>(env, environment, exports, "quantize");
  bind<&ops::quant_linear>(env, environment, exports, "quantLinear");
  bind<&ops::lora_apply>(env, environment, exports, "loraApply");
  bind<&ops::qformer_cross_attention>(env, environment, exports, "qformerCrossAttention");
  bind<&ops::lora_merge>(env, environment, exports, "loraMerge");
  bind<&ops::layer_norm>(env, environment, exports, "layerNorm");
  bind<&ops::rms_norm>(env, environment, exports, "rmsNorm");
  bind<&ops::softmax>(env, environment, exports, "softmax");
  bind<&ops::rope>(env, environment, exports, "rope");
  bind<&ops::attention>(env, environment, exports, "attention");
  bind<&ops::kv_append>(env, environment, exports, "kvAppend");
  bind<&ops::paged_attention>(env, environment, exports, "pagedAttention");
  bind<&ops::embedding>(env, environment, exports, "embedding");
  bind<&ops::gather_rows>(env, environment, exports, "gatherRows");
  bind<&ops::scatter_rows>(env, environment, exports, "scatterRows");
  bind<&ops::binary>(env, environment, exports, "binary");
  bind<&ops::unary>(env, environment, exports, "unary");
  bind<&ops::cast>(env, environment, exports, "cast");
  bind<&ops::copy_into>(env, environment, exports, "copyInto");
  bind<&ops::resize_bicubic>(env, environment, exports, "resizeBicubic");
  bind<&ops::normalize_image>(env, environment, exports, "normalizeImage");
  bind<&ops::patch_embedding>(env, environment, exports, "patchEmbedding");
  bind<&ops::penalize_logits>(env, environment, exports, "penalizeLogits");
  bind<&ops::warp_logits>(env, environment, exports, "warpLogits");
  bind<&ops::sample>(env, environment, exports, "sample");
  bind<&ops::top_k>(env, environment, exports, "topK");
}

Napi::Object initialize(Napi::Env env, Napi::Object exports) {
  register_backend(cpu::cpu_backend());
  auto* environment = new Environment;
  env.SetInstanceData<Environment>(environment);
  bind_tensors(env, *environment, exports);
  bind_resources(env, *environment, exports);
  bind_ops(env, *environment, exports);
  return exports;
}

}  // namespace
}  // namespace qformer::napi

// The macro needs a function in the global namespace.
static Napi::Object qformer_initialize(Napi::Env env, Napi::Object exports) {
  return qformer::napi::initialize(env, exports);
}
NODE_API_MODULE(qformer, qformer_initialize)

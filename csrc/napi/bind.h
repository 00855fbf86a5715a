// Turns a C++ function into a JavaScript function from its signature: bind<&ops::rms_norm>(...) reads a tensor handle,
// another one and a number, and returns the handle of the result. Numbers arrive as doubles; the TypeScript wrappers
// pass nothing else, yet every argument is checked, because nothing that arrives here may crash the process.
#pragma once

#include <array>
#include <cmath>
#include <string>
#include <tuple>
#include <utility>

#include "napi/environment.h"
#include "ops/ops.h"

namespace qformer::napi {

double read_number(napi_env env, napi_value value, size_t position);
int64_t read_integer(napi_env env, napi_value value, size_t position);
std::vector<double> read_numbers(napi_env env, napi_value value, size_t position);
std::string read_string(napi_env env, napi_value value, size_t position);
Shape read_shape(napi_env env, napi_value value, size_t position);
// Throws into JavaScript, an Error as a QFormerError. Without effect in a worker that is being terminated: there is no
// JavaScript any more that could catch it, and every attempt to make a value fails.
void throw_error(napi_env env, Environment& environment, const Error& error) noexcept;
void throw_error(const Napi::Error& error) noexcept;

// How a parameter of type T is read. The primary template covers integers.
template <class T>
struct Reader {
  static T read(napi_env env, Environment&, napi_value value, size_t position) {
    return static_cast<T>(read_integer(env, value, position));
  }
};
template <>
struct Reader<const Tensor&> {
  static const Tensor& read(napi_env env, Environment& environment, napi_value value, size_t position) {
    return environment.tensor(read_integer(env, value, position));
  }
};
template <>
struct Reader<const Tensor*> {  // 0 stands for "none"
  static const Tensor* read(napi_env env, Environment& environment, napi_value value, size_t position) {
    const int64_t handle = read_integer(env, value, position);
    return handle == 0 ? nullptr : &environment.tensor(handle);
  }
};
template <>
struct Reader<double> {
  static double read(napi_env env, Environment&, napi_value value, size_t position) {
    return read_number(env, value, position);
  }
};
template <>
struct Reader<bool> {
  static bool read(napi_env env, Environment&, napi_value value, size_t position) {
    return read_integer(env, value, position) != 0;
  }
};
template <>
struct Reader<const Shape&> {
  static Shape read(napi_env env, Environment&, napi_value value, size_t position) {
    return read_shape(env, value, position);
  }
};
template <>
struct Reader<const std::array<double, 3>&> {
  static std::array<double, 3> read(napi_env env, Environment&, napi_value value, size_t position) {
    const std::vector<double> numbers = read_numbers(env, value, position);
    if (numbers.size() != 3) fail(ErrorCode::kInvalidArgument, "argument %zu must be 3 numbers", position + 1);
    return {numbers[0], numbers[1], numbers[2]};
  }
};
template <>
struct Reader<const std::string&> {
  static std::string read(napi_env env, Environment&, napi_value value, size_t position) {
    return read_string(env, value, position);
  }
};
template <>
struct Reader<const std::vector<double>&> {
  static std::vector<double> read(napi_env env, Environment&, napi_value value, size_t position) {
    return read_numbers(env, value, position);
  }
};
template <>
struct Reader<napi_value> {  // read by the function itself
  static napi_value read(napi_env, Environment&, napi_value value, size_t) { return value; }
};

inline napi_value write_number(napi_env env, double number) {
  napi_value value = nullptr;
  napi_create_double(env, number, &value);
  return value;
}
inline napi_value write_result(napi_env env, Environment&, double number) { return write_number(env, number); }
inline napi_value write_result(napi_env env, Environment& environment, Tensor&& tensor) {
  return write_number(env, static_cast<double>(environment.add(std::move(tensor))));
}
inline napi_value write_result(napi_env, Environment&, napi_value value) { return value; }
napi_value write_result(napi_env env, Environment& environment, ops::TopK result);
napi_value write_result(napi_env env, Environment& environment, ops::Quantized result);

template <auto Function, class Signature>
struct Binding;

// Functions that need the environment itself take it first.
template <auto Function, class Result, class... Args>
struct Binding<Function, Result (*)(Environment&, Napi::Env, Args...)> {
  template <size_t... I>
  static napi_value call(napi_env env, Environment& environment, const napi_value* argv, std::index_sequence<I...>) {
    if constexpr (std::is_void_v<Result>) {
      Function(environment, Napi::Env(env), Reader<Args>::read(env, environment, argv[I], I)...);
      return nullptr;
    } else {
      return write_result(env, environment,
                          Function(environment, Napi::Env(env), Reader<Args>::read(env, environment, argv[I], I)...));
    }
  }
  static constexpr size_t kArity = sizeof...(Args);
};

template <auto Function, class Result, class... Args>
struct Binding<Function, Result (*)(Args...)> {
  template <size_t... I>
  static napi_value call(napi_env env, Environment& environment, const napi_value* argv, std::index_sequence<I...>) {
    if constexpr (std::is_void_v<Result>) {
      Function(Reader<Args>::read(env, environment, argv[I], I)...);
      return nullptr;
    } else {
      return write_result(env, environment, Function(Reader<Args>::read(env, environment, argv[I], I)...));
    }
  }
  static constexpr size_t kArity = sizeof...(Args);
};

template <auto Function>
napi_value invoke(napi_env env, napi_callback_info info) {
  using Bound = Binding<Function, decltype(Function)>;
  napi_value argv[Bound::kArity + 1];
  size_t argc = Bound::kArity;
  void* data = nullptr;
  napi_get_cb_info(env, info, &argc, argv, nullptr, &data);
  auto& environment = *static_cast<Environment*>(data);
  try {
    return Bound::call(env, environment, argv, std::make_index_sequence<Bound::kArity>());
  } catch (const Error& error) {
    throw_error(env, environment, error);
  } catch (const Napi::Error& error) {
    throw_error(error);
  } catch (const std::bad_alloc&) {
    throw_error(env, environment, Error(ErrorCode::kOutOfMemory, "out of memory"));
  } catch (const std::exception& error) {
    throw_error(env, environment, Error(ErrorCode::kInternal, error.what()));
  }
  return nullptr;
}

template <auto Function>
void bind(Napi::Env env, Environment& environment, Napi::Object exports, const char* name) {
  napi_value function = nullptr;
  napi_create_function(env, name, NAPI_AUTO_LENGTH, &invoke<Function>, &environment, &function);
  exports.Set(name, Napi::Value(env, function));
}

}  // namespace qformer::napi

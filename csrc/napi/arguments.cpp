// Reading JavaScript values into C++ and throwing C++ errors into JavaScript.
#include "napi/bind.h"

namespace qformer::napi {
namespace {

[[noreturn]] void wrong_type(size_t position, const char* wanted) {
  fail(ErrorCode::kInvalidArgument, "argument %zu must be %s", position + 1, wanted);
}

}  // namespace

double read_number(napi_env env, napi_value value, size_t position) {
  double number = 0;
  if (napi_get_value_double(env, value, &number) != napi_ok) wrong_type(position, "a number");
  return number;
}

int64_t read_integer(napi_env env, napi_value value, size_t position) {
  const double number = read_number(env, value, position);
  constexpr double kLargest = 9007199254740991.0;
  if (!(number >= -kLargest && number <= kLargest)) wrong_type(position, "an integer");
  const auto integer = static_cast<int64_t>(number);
  if (static_cast<double>(integer) != number) wrong_type(position, "an integer");
  return integer;
}

std::vector<double> read_numbers(napi_env env, napi_value value, size_t position) {
  bool is_array = false;
  napi_is_array(env, value, &is_array);
  if (!is_array) wrong_type(position, "an array of numbers");
  uint32_t length = 0;
  napi_get_array_length(env, value, &length);
  std::vector<double> numbers(length);
  for (uint32_t i = 0; i < length; ++i) {
    napi_value element = nullptr;
    napi_get_element(env, value, i, &element);
    numbers[i] = read_number(env, element, position);
  }
  return numbers;
}

std::string read_string(napi_env env, napi_value value, size_t position) {
  size_t length = 0;
  if (napi_get_value_string_utf8(env, value, nullptr, 0, &length) != napi_ok) wrong_type(position, "a string");
  std::string text(length, '\0');
  napi_get_value_string_utf8(env, value, text.data(), length + 1, &length);
  return text;
}

Shape read_shape(napi_env env, napi_value value, size_t position) {
  const std::vector<double> numbers = read_numbers(env, value, position);
  Shape shape;
  for (double number : numbers) {
    if (number != std::trunc(number) || std::abs(number) > 9007199254740991.0)
      wrong_type(position, "an array of integers");
    if (number < 0) fail(ErrorCode::kShape, "a shape has no negative extent, got %.0f", number);
    shape.push_back(static_cast<int64_t>(number));
  }
  shape.count();  // refuses overflow
  return shape;
}

namespace {

Napi::Value make_error(Napi::Env env, const Environment& environment, const Error& error) {
  const char* code = error_code_name(error.code);
  if (environment.error_class.IsEmpty()) {
    Napi::Error plain = Napi::Error::New(env, error.message);
    plain.Set("code", code);
    return plain.Value();
  }
  Napi::Object details = Napi::Object::New(env);
  if (error.requested_bytes >= 0) {
    details.Set("requested", static_cast<double>(error.requested_bytes));
    details.Set("free", static_cast<double>(error.free_bytes));
  }
  return environment.error_class.New({Napi::String::New(env, code), Napi::String::New(env, error.message), details});
}

}  // namespace

void throw_error(napi_env env, Environment& environment, const Error& error) noexcept {
  try {
    napi_throw(env, make_error(Napi::Env(env), environment, error));
  } catch (const Napi::Error& pending) {
    throw_error(pending);
  }
}

void throw_error(const Napi::Error& error) noexcept {
  try {
    error.ThrowAsJavaScriptException();
  } catch (const Napi::Error&) {
    // The environment is being terminated.
  }
}

namespace {

napi_value write_pair(napi_env env, Environment& environment, Tensor first, Tensor second) {
  napi_value pair = nullptr;
  napi_create_array_with_length(env, 2, &pair);
  napi_set_element(env, pair, 0, write_result(env, environment, std::move(first)));
  napi_set_element(env, pair, 1, write_result(env, environment, std::move(second)));
  return pair;
}

}  // namespace

napi_value write_result(napi_env env, Environment& environment, ops::TopK result) {
  return write_pair(env, environment, std::move(result.values), std::move(result.ids));
}

napi_value write_result(napi_env env, Environment& environment, ops::Quantized result) {
  return write_pair(env, environment, std::move(result.q), std::move(result.scales));
}

}  // namespace qformer::napi

// linear, gated_linear and patch_embedding of many rows through the backend's table: every epilogue, dtype and stride
// against double.
#include "gemm_case.h"

using namespace qformer;
using namespace qformer::test;

namespace {

constexpr int64_t kRows = 70;  // more than the decode kernels take, and no multiple of a tile

QfLinear problem(const Matrix& x, const Matrix& w, const Matrix& y) {
  QfLinear args{};
  args.x = x.data();
  args.w = w.data();
  args.y = y.data();
  args.m = x.rows;
  args.n = w.rows;
  args.k = x.columns;
  args.ldx = x.ld;
  args.ldw = w.ld;
  args.ldy = y.ld;
  args.dtype = x.dtype;
  args.w_dtype = w.dtype;
  args.y_dtype = y.dtype;
  return args;
}

void run(const QfLinear& args) {
  const QfStatus status = table().linear(0, &args);
  if (status != QF_OK) fail(__FILE__, __LINE__, table().last_error());
}

// y = act(x · wᵀ + bias) + residual, all as given in `args`.
void check_linear(const Matrix& x, const Matrix& w, const Matrix* bias, const Matrix* residual, const Matrix& y,
                  int32_t activation, const std::string& what, bool x_as_bf16 = false) {
  for (int64_t i = 0; i < y.rows; ++i) {
    for (int64_t j = 0; j < y.columns; ++j) {
      Expected e = dot_of(x, i, w, j, x_as_bf16);
      if (bias != nullptr) e.value += (*bias)(0, j);
      e = activated(activation, e);
      if (residual != nullptr) e.value += (*residual)(i, j);
      e.error += 0x1p-23 * std::abs(e.value);
      if (!check_element(y, i, j, e, what)) return;
    }
  }
  CHECK(y.padding_untouched());
}

struct Types {
  int32_t x, w, y;
};
constexpr Types kTypes[] = {{QF_F32, QF_F32, QF_F32},  {QF_F32, QF_F16, QF_F32}, {QF_F32, QF_BF16, QF_F32},
                            {QF_F16, QF_F16, QF_F16},  {QF_F16, QF_F16, QF_F32}, {QF_BF16, QF_BF16, QF_BF16},
                            {QF_BF16, QF_BF16, QF_F32}};

std::string name_of(const Types& t) {
  return std::string(qf_dtype_name(t.x)) + " · " + qf_dtype_name(t.w) + " -> " + qf_dtype_name(t.y);
}

}  // namespace

TEST("every epilogue of linear is right in every dtype") {
  Random random(1);
  for (const Types& types : kTypes) {
    Matrix x(types.x, kRows, 88), w(types.w, 72, 88), bias(QF_F32, 1, 72), residual(types.y, kRows, 72);
    x.fill(random, 1.0f);
    w.fill(random, 0.5f);
    bias.fill(random, 1.0f);
    residual.fill(random, 1.0f);
    for (int32_t activation = QF_ACT_NONE; activation <= QF_ACT_SILU; ++activation) {
      for (int with = 0; with < 4; ++with) {
        Matrix y(types.y, kRows, 72);
        QfLinear args = problem(x, w, y);
        args.activation = activation;
        args.bias = with & 1 ? bias.floats() : nullptr;
        args.residual = with & 2 ? residual.data() : nullptr;
        args.ldr = residual.ld;
        run(args);
        y.download();
        check_linear(x, w, with & 1 ? &bias : nullptr, with & 2 ? &residual : nullptr, y, activation, name_of(types));
      }
    }
  }
}

TEST("linear takes odd sizes, strides and misaligned operands") {
  struct Layout {
    int64_t m, n, k, pad_x, pad_w, pad_y, pad_r, shift;
  };
  constexpr Layout kLayouts[] = {
      {65, 1, 1, 0, 0, 0, 0, 0},   {65, 7, 7, 0, 0, 0, 0, 0},    {129, 257, 40, 8, 16, 8, 24, 0},
      {66, 24, 64, 0, 0, 3, 5, 0}, {66, 24, 64, 0, 0, 0, 0, 1},  {67, 33, 50, 1, 3, 1, 1, 0},
      {80, 64, 64, 8, 8, 8, 8, 8}, {257, 17, 24, 0, 0, 0, 0, 0}, {70, 40, 1408, 8, 0, 0, 0, 0},
  };
  Random random(2);
  for (const Types& types : kTypes) {
    for (const Layout& l : kLayouts) {
      Matrix x(types.x, l.m, l.k, l.pad_x, l.shift), w(types.w, l.n, l.k, l.pad_w, l.shift);
      Matrix bias(QF_F32, 1, l.n, 0, l.shift), residual(types.y, l.m, l.n, l.pad_r, l.shift);
      Matrix y(types.y, l.m, l.n, l.pad_y, l.shift);
      x.fill(random, 1.0f);
      w.fill(random, 0.5f);
      bias.fill(random, 1.0f);
      residual.fill(random, 1.0f);
      QfLinear args = problem(x, w, y);
      args.bias = bias.floats();
      args.residual = residual.data();
      args.ldr = residual.ld;
      args.activation = QF_ACT_RELU;
      run(args);
      y.download();
      check_linear(x, w, &bias, &residual, y, QF_ACT_RELU,
                   name_of(types) + " n " + std::to_string(l.n) + " k " + std::to_string(l.k));
    }
  }
}

TEST("the residual may be y itself") {
  Random random(3);
  for (const int32_t dtype : {QF_F32, QF_BF16}) {
    Matrix x(dtype, kRows, 1408), w(dtype, 24, 1408), y(dtype, kRows, 24), before(dtype, kRows, 24);
    x.fill(random, 1.0f);
    w.fill(random, 0.1f);
    y.fill(random, 1.0f);
    before.copy_rows(y);
    QfLinear args = problem(x, w, y);
    args.residual = y.data();
    args.ldr = y.ld;
    run(args);
    y.download();
    check_linear(x, w, nullptr, &before, y, QF_ACT_NONE, "in place");
  }
}

TEST("math bf16 rounds f32 activations before the products") {
  Random random(4);
  Matrix x(QF_F32, kRows, 50), w(QF_BF16, 30, 50), y(QF_F32, kRows, 30);
  x.fill(random, 1.0f);
  w.fill(random, 1.0f);
  QfLinear args = problem(x, w, y);
  args.math = QF_MATH_BF16;
  run(args);
  y.download();
  check_linear(x, w, nullptr, nullptr, y, QF_ACT_NONE, "bf16 products", true);
}

TEST("no rows, no columns and no k are no error") {
  Matrix x(QF_F16, kRows, 8), w(QF_F16, 8, 8), y(QF_F16, kRows, 8), bias(QF_F32, 1, 8);
  Random random(5);
  bias.fill(random, 1.0f);
  QfLinear args = problem(x, w, y);
  args.m = 0;
  run(args);
  args = problem(x, w, y);
  args.n = 0;
  run(args);
  args = problem(x, w, y);
  args.k = 0;
  args.bias = bias.floats();
  run(args);
  y.download();
  for (int64_t j = 0; j < 8; ++j) CHECK_EQ(y(3, j), cuda::to_float(cuda::from_float<cuda::Half>(bias(0, j))));
}

TEST("gated linear multiplies the activated gate with the other half") {
  Random random(6);
  for (const Types& types : kTypes) {
    if (types.x != types.y) continue;
    // Aligned, and k and strides that are not.
    for (const int64_t k : {64, 45}) {
      for (const int32_t activation : {QF_ACT_SILU, QF_ACT_GELU_TANH}) {
        Matrix x(types.x, 133, k), gate(types.w, 75, k), up(types.w, 75, k), y(types.x, 133, 75, 5);
        x.fill(random, 1.0f);
        gate.fill(random, 0.5f);
        up.fill(random, 0.5f);
        QfGatedLinear args{};
        args.x = x.data();
        args.w_gate = gate.data();
        args.w_up = up.data();
        args.y = y.data();
        args.m = x.rows;
        args.n = gate.rows;
        args.k = k;
        args.ldx = x.ld;
        args.ldw = gate.ld;
        args.ldy = y.ld;
        args.dtype = types.x;
        args.w_dtype = types.w;
        args.activation = activation;
        const QfStatus status = table().gated_linear(0, &args);
        if (status != QF_OK) fail(__FILE__, __LINE__, table().last_error());
        y.download();
        bool right = true;
        for (int64_t i = 0; right && i < y.rows; ++i) {
          for (int64_t j = 0; right && j < y.columns; ++j) {
            const Expected g = activated(activation, dot_of(x, i, gate, j)), u = dot_of(x, i, up, j);
            Expected e{g.value * u.value, 0.0};
            e.error = g.error * std::abs(u.value) + u.error * std::abs(g.value) + g.error * u.error +
                      0x1p-23 * std::abs(e.value);
            right = check_element(y, i, j, e, "gated " + name_of(types));
          }
        }
        CHECK(y.padding_untouched());
      }
    }
  }
}

TEST("a norm in front gives the bits of rms_norm and then linear") {
  Random random(7);
  for (const Types& types : kTypes) {
    Matrix x(types.x, kRows, 104, 8), w(types.w, 40, 104), norm(QF_F32, 1, 104), normed(types.x, kRows, 104);
    Matrix y(types.y, kRows, 40), expected(types.y, kRows, 40);
    x.fill(random, 2.0f);
    w.fill(random, 1.0f);
    norm.fill(random, 1.0f);
    const QfRmsNorm rms{x.data(), norm.floats(), normed.data(), kRows, 104, x.ld, 1e-5f, types.x};
    if (table().rms_norm(0, &rms) != QF_OK) return fail(__FILE__, __LINE__, table().last_error());
    run(problem(normed, w, expected));
    QfLinear args = problem(x, w, y);
    args.norm_weight = norm.floats();
    args.norm_eps = 1e-5f;
    run(args);
    y.download();
    expected.download();
    CHECK(same_rows(y, expected, kRows));
  }
}

TEST("patch embedding multiplies the patches, adds positions and puts the class token in front") {
  constexpr int64_t kBatch = 3, kChannels = 3, kPatch = 14, kGrid = 5, kDim = 40, kPatches = kGrid * kGrid;
  constexpr int64_t kSide = kPatch * kGrid, kColumns = kChannels * kPatch * kPatch;
  Random random(8);
  for (const Types& types : kTypes) {
    if (types.x != types.y) continue;
    Matrix pixels(QF_F32, kBatch * kChannels * kSide, kSide), w(types.w, kDim, kColumns), bias(QF_F32, 1, kDim);
    Matrix token(QF_F32, 1, kDim), positions(QF_F32, 1 + kPatches, kDim), y(types.x, kBatch * (1 + kPatches), kDim);
    pixels.fill(random, 2.0f);
    w.fill(random, 0.1f);
    bias.fill(random, 1.0f);
    token.fill(random, 1.0f);
    positions.fill(random, 1.0f);
    QfPatchEmbedding args{};
    args.x = pixels.floats();
    args.w = w.data();
    args.bias = bias.floats();
    args.class_embedding = token.floats();
    args.positions = positions.floats();
    args.y = y.data();
    args.batch = kBatch;
    args.channels = kChannels;
    args.height = args.width = kSide;
    args.patch = kPatch;
    args.dim = kDim;
    args.dtype = types.x;
    args.w_dtype = types.w;
    if (table().patch_embedding(0, &args) != QF_OK) return fail(__FILE__, __LINE__, table().last_error());
    y.download();
    // The patches as rows, pixels rounded to dtype.
    Matrix rows(types.x, kBatch * kPatches, kColumns);
    rows.fill_with([&](int64_t row, int64_t column) {
      const int64_t image = row / kPatches, place = row % kPatches, channel = column / (kPatch * kPatch);
      const int64_t down = place / kGrid * kPatch + column % (kPatch * kPatch) / kPatch;
      return pixels((image * kChannels + channel) * kSide + down, place % kGrid * kPatch + column % kPatch);
    });
    bool right = true;
    for (int64_t i = 0; right && i < y.rows; ++i) {
      const int64_t image = i / (1 + kPatches), place = i % (1 + kPatches);
      for (int64_t j = 0; right && j < kDim; ++j) {
        Expected e{token(0, j), 0.0};
        if (place > 0) {
          e = dot_of(rows, image * kPatches + place - 1, w, j);
          e.value += bias(0, j);
        }
        e.value += positions(place, j);
        e.error += 0x1p-22 * (std::abs(e.value) + 3.0);  // two sums of values up to 3
        right = check_element(y, i, j, e, "patches " + name_of(types));
      }
    }
  }
}

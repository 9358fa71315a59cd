// Full-batch gradient descent with momentum on a shallow ReLU network with the squared loss, many steps in one call.
//
// The steps are those of relu_sgd.Descent, in an arithmetic of their own order. A network is trained by one thread, in
// registers and in the cache of a core; vectors run along the samples, in the forward products
// Z_ij = sum_k X_ik W_kj and in the backward ones G_kj = sum_i X_ik D_ij, whose sums over the lanes of a vector are
// formed for many entries of G at once.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

using Index = std::int64_t;

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kForwardVectors = 7;  // 32 registers: 4 neurons x 7 vectors of sums, and operands.
#elif defined(__AVX__)
constexpr int kVectorBytes = 32, kForwardVectors = 3;
#else
constexpr int kVectorBytes = 16, kForwardVectors = 3;
#endif
constexpr int kNeurons = 4;  // Columns of W in a block of the forward product.
constexpr int kInputs = 4, kColumns = 4;  // Rows and columns of W in a block of the backward one.

template <class T>
struct Vector {
  typedef T type __attribute__((vector_size(kVectorBytes), aligned(kVectorBytes)));
  static constexpr int length = kVectorBytes / sizeof(T);
};
template <class T>
using V = typename Vector<T>::type;
template <class T>
constexpr int kLength = Vector<T>::length;

template <class T>
V<T> all(T value) {
  return value - V<T>{};  // A difference keeps the sign of zero.
}

// Lanes with bit H clear from a and with it set from b: as they lie, or H lanes from the other half.
template <int H, bool kOther, class T, int... I>
V<T> mix(V<T> a, V<T> b, std::integer_sequence<int, I...>) {
  constexpr int L = kLength<T>;
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, (kOther ? ((I & H) ? L + I - H : I + H) : ((I & H) ? L + I : I))...);
#else
  using Index = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
  typedef Index Mask __attribute__((vector_size(kVectorBytes)));
  return __builtin_shuffle(a, b, Mask{(kOther ? ((I & H) ? L + I - H : I + H) : ((I & H) ? L + I : I))...});
#endif
}

// Of as many vectors as a vector has lanes, the sums of their lanes: lane l of the first is the sum of vector l.
template <class T, int H = kLength<T> / 2>
void sum_lanes(V<T>* a) {
  constexpr auto lanes = std::make_integer_sequence<int, kLength<T>>();
  for (int i = 0; i < H; ++i) a[i] = mix<H, false, T>(a[i], a[i + H], lanes) + mix<H, true, T>(a[i], a[i + H], lanes);
  if constexpr (H > 1) sum_lanes<T, H / 2>(a);
}

template <class T>
T sum_of_lanes(V<T> a) {
  T sum = 0;
  for (int lane = 0; lane < kLength<T>; ++lane) sum += a[lane];
  return sum;
}

struct Free {
  void operator()(void* pointer) const { std::free(pointer); }
};

// Subnormal numbers are 0 while this lives, as in XLA's programs: the velocity of a neuron without active samples
// decays, and would be slow for ever after.
class FlushSubnormals {
 public:
#if defined(__SSE__)
  FlushSubnormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~FlushSubnormals() { _mm_setcsr(before_); }

 private:
  const unsigned before_;
#elif defined(__aarch64__)
  FlushSubnormals() {
    asm volatile("mrs %0, fpcr" : "=r"(before_));
    asm volatile("msr fpcr, %0" ::"r"(before_ | (std::uint64_t(1) << 24)));
  }
  ~FlushSubnormals() { asm volatile("msr fpcr, %0" ::"r"(before_)); }

 private:
  std::uint64_t before_;
#endif
};

Index round_up(Index value, Index multiple) { return (value + multiple - 1) / multiple * multiple; }

// What every network of a call has in common.
struct Options {
  double learning_rate, momentum, tolerance, at_zero;
  double gradient_scale;          // Of the objective: 1 for the half sum of squares.
  bool both_layers, first_passage;
  int criterion;                  // 0 for none, 1 for the relative error, 2 for the mean squared error over sqrt(N).
};

template <class T>
class Network {
 public:
  Network(Index N, Index d0, Index d1, Index d2, const Options& options)
      : N_(N), d0_(d0), d1_(d1), d2_(d2), options_(options), Np_(round_up(N, kLength<T>)),
        d1p_(round_up(d1, kNeurons)) {
    const Index rows = round_up(d0, kInputs);
    const Index sizes[] = {rows * Np_,   d1p_ * Np_,  d2 * Np_,  d2 * Np_,  rows * d1p_,
                           rows * d1p_,  rows * d1p_, d1p_ * d2, d1p_ * d2, d1p_ * d2};
    T** const places[] = {&X_, &Z_, &Y_, &E_, &W_, &W_velocity_, &W_gradient_, &V_, &V_velocity_, &V_gradient_};
    Index whole = kLength<T>;
    for (Index size : sizes) whole += round_up(size, kLength<T>);
    memory_.reset(static_cast<T*>(std::aligned_alloc(kVectorBytes, whole * sizeof(T))));
    if (!memory_) return;
    std::fill_n(memory_.get(), whole, T(0));
    T* next = memory_.get();
    for (int i = 0; i < 10; ++i) {
      *places[i] = next;
      next += round_up(sizes[i], kLength<T>);
    }
  }

  bool has_memory() const { return memory_ != nullptr; }

  // The gradient is 0 until theta_0 has been evaluated, whatever is given.
  void load(bool is_evaluated, const T* X, const T* Y, const T* W, const T* W_velocity, const T* W_gradient,
            const T* V, const T* V_velocity, const T* V_gradient) {
    for (Index i = 0; i < N_; ++i) {
      for (Index k = 0; k < d0_; ++k) X_[k * Np_ + i] = X[i * d0_ + k];
      for (Index c = 0; c < d2_; ++c) Y_[c * Np_ + i] = Y[i * d2_ + c];
    }
    T square = 0;
    for (Index i = 0; i < N_ * d2_; ++i) square += Y[i] * Y[i];
    label_norm_ = std::sqrt(square);
    copy_hidden(W, W_);
    copy_hidden(W_velocity, W_velocity_);
    std::copy_n(V, d1_ * d2_, V_);
    if (is_evaluated) copy_hidden(W_gradient, W_gradient_);
    if (options_.both_layers) std::copy_n(V_velocity, d1_ * d2_, V_velocity_);
    if (options_.both_layers && is_evaluated) std::copy_n(V_gradient, d1_ * d2_, V_gradient_);
    trim();
  }

  void store(T* W, T* W_velocity, T* W_gradient, T* V, T* V_velocity, T* V_gradient, T* losses) const {
    copy_back(W_, W);
    copy_back(W_velocity_, W_velocity);
    copy_back(W_gradient_, W_gradient);
    std::copy_n(V_, d1_ * d2_, V);
    if (options_.both_layers) {
      std::copy_n(V_velocity_, d1_ * d2_, V_velocity);
      std::copy_n(V_gradient_, d1_ * d2_, V_gradient);
    }
    for (Index i = 0; i < N_; ++i) {
      T square = 0;
      for (Index c = 0; c < d2_; ++c) square += E_[c * Np_ + i] * E_[c * Np_ + i];
      losses[i] = square / 2;
    }
  }

  // theta <- theta - rate (gradient + momentum velocity).
  void update() {
    update(W_, W_velocity_, W_gradient_, round_up(used_inputs_, kInputs) * d1p_);
    if (options_.both_layers) update(V_, V_velocity_, V_gradient_, d1p_ * d2_);
  }

  // The loss at theta, and the gradient of the objective.
  T evaluate() {
    forward();
    const T loss = residuals() / 2;
    if (options_.at_zero != 0) derivatives<true>(); else derivatives<false>();
    backward();
    return loss;
  }

  bool meets(T loss) const {
    const T tolerance = options_.tolerance, square = 2 * loss;
    if (options_.criterion == 1) return std::sqrt(square) / label_norm_ < tolerance;
    if (options_.criterion == 2) return square / T(N_ * d2_) < tolerance * std::sqrt(T(N_));
    return false;
  }

  T scale() const { return options_.gradient_scale; }

 private:
  void copy_hidden(const T* from, T* to) const {
    for (Index k = 0; k < d0_; ++k) std::copy_n(from + k * d1_, d1_, to + k * d1p_);
  }
  void copy_back(const T* from, T* to) const {
    for (Index k = 0; k < d0_; ++k) std::copy_n(from + k * d1p_, d1_, to + k * d1_);
  }

  // Last inputs that are 0 in all samples, and last neurons that are 0 and stay so, change nothing.
  void trim() {
    auto is_zero = [](const T* values, Index count, Index stride) {
      for (Index i = 0; i < count; ++i)
        if (values[i * stride] != 0) return false;
      return true;
    };
    used_inputs_ = d0_;
    while (used_inputs_ > 0) {
      const Index k = used_inputs_ - 1;
      const T* const parts[] = {W_, W_velocity_, W_gradient_};
      bool unused = is_zero(X_ + k * Np_, N_, 1);
      for (const T* part : parts) unused = unused && is_zero(part + k * d1p_, d1_, 1);
      if (!unused) break;
      --used_inputs_;
    }
    used_neurons_ = d1_;
    while (used_neurons_ > 0) {
      const Index j = used_neurons_ - 1;
      bool unused = true;
      const T* const hidden[] = {W_, W_velocity_, W_gradient_};
      const T* const output[] = {V_, V_velocity_, V_gradient_};
      for (const T* part : hidden) unused = unused && is_zero(part + j, d0_, d1p_);
      for (const T* part : output) unused = unused && is_zero(part + j * d2_, d2_, 1);
      if (!unused) break;
      --used_neurons_;
    }
  }

  void update(T* weights, T* velocities, const T* gradients, Index count) const {
    const T rate = options_.learning_rate, momentum = options_.momentum;
    for (Index i = 0; i < count; ++i) {
      velocities[i] = gradients[i] + momentum * velocities[i];
      weights[i] -= rate * velocities[i];
    }
  }

  // Z and the outputs (in E) of J neurons on M vectors of samples.
  template <int J, int M>
  void forward_block(Index j, Index start) {
    constexpr int L = kLength<T>;
    V<T> z[J][M] = {};
    const T* x = X_ + start;
    const T* w = W_ + j;
    for (Index k = 0; k < used_inputs_; ++k, x += Np_, w += d1p_)
      for (int b = 0; b < J; ++b) {
        const V<T> weight = all<T>(w[b]);
        for (int m = 0; m < M; ++m) z[b][m] += weight * *reinterpret_cast<const V<T>*>(x + m * L);
      }
    for (int b = 0; b < J; ++b)
      for (int m = 0; m < M; ++m) *reinterpret_cast<V<T>*>(Z_ + (j + b) * Np_ + start + m * L) = z[b][m];
    for (int b = 0; b < J; ++b)
      for (int m = 0; m < M; ++m) z[b][m] = z[b][m] <= 0 ? V<T>{} : z[b][m];  // NaN stays.
    for (Index c = 0; c < d2_; ++c) {
      V<T>* out = reinterpret_cast<V<T>*>(E_ + c * Np_ + start);
      V<T> outputs[M];
      for (int m = 0; m < M; ++m) outputs[m] = out[m];
      for (int b = 0; b < J; ++b) {
        const V<T> weight = all<T>(V_[(j + b) * d2_ + c]);
        for (int m = 0; m < M; ++m) outputs[m] += weight * z[b][m];
      }
      for (int m = 0; m < M; ++m) out[m] = outputs[m];
    }
  }

  template <int M>
  void forward_columns(Index start) {
    Index j = 0;
    for (; j + kNeurons <= used_neurons_; j += kNeurons) forward_block<kNeurons, M>(j, start);
    switch (used_neurons_ - j) {
      case 1: return forward_block<1, M>(j, start);
      case 2: return forward_block<2, M>(j, start);
      case 3: return forward_block<3, M>(j, start);
    }
  }

  template <int M = kForwardVectors>
  void forward_columns(Index vectors, Index start) {
    if (vectors == M) return forward_columns<M>(start);
    if constexpr (M > 1) forward_columns<M - 1>(vectors, start);
  }

  void forward() {
    std::fill_n(E_, d2_ * Np_, T(0));
    const Index vectors = Np_ / kLength<T>, blocks = (vectors + kForwardVectors - 1) / kForwardVectors;
    for (Index block = 0, begin = 0; block < blocks; ++block) {  // Of lengths that differ by one at most.
      const Index end = (block + 1) * vectors / blocks;
      forward_columns(end - begin, begin * kLength<T>);
      begin = end;
    }
  }

  // E = Y - outputs; the sum of its squares. Samples that fill a vector have none, even where a weight is infinite.
  T residuals() {
    for (Index c = 0; c < d2_; ++c) std::fill_n(E_ + c * Np_ + N_, Np_ - N_, T(0));
    V<T> square = {};
    for (Index i = 0; i < d2_ * Np_; i += kLength<T>) {
      V<T>& error = *reinterpret_cast<V<T>*>(E_ + i);
      error = *reinterpret_cast<const V<T>*>(Y_ + i) - error;
      square += error * error;
    }
    return sum_of_lanes<T>(square);
  }

  // D_ij = relu'(Z_ij) sum_c E_ic V_jc in the place of Z, and the gradient of V.
  template <bool kSlopeAtZero>
  void derivatives() {
    const V<T> slope = all<T>(options_.at_zero);
    for (Index j = 0; j < used_neurons_; ++j) {
      T* const row = Z_ + j * Np_;
      const T* const v = V_ + j * d2_;
      if (options_.both_layers)
        for (Index c = 0; c < d2_; ++c) {
          V<T> sum = {};
          for (Index i = 0; i < Np_; i += kLength<T>) {
            const V<T> z = *reinterpret_cast<const V<T>*>(row + i);
            sum += (z > 0 ? z : V<T>{}) * *reinterpret_cast<const V<T>*>(E_ + c * Np_ + i);
          }
          V_gradient_[j * d2_ + c] = -scale() * sum_of_lanes<T>(sum);
        }
      for (Index i = 0; i < Np_; i += kLength<T>) {
        V<T>& z = *reinterpret_cast<V<T>*>(row + i);
        V<T> pull = all<T>(v[0]) * *reinterpret_cast<const V<T>*>(E_ + i);
        for (Index c = 1; c < d2_; ++c) pull += all<T>(v[c]) * *reinterpret_cast<const V<T>*>(E_ + c * Np_ + i);
        V<T> off = {};
        if constexpr (kSlopeAtZero) off = z == 0 ? slope * pull : V<T>{};
        z = z > 0 ? pull : off;
      }
    }
  }

  template <int K, int J>
  void backward_block(Index k, Index j) {
    constexpr int L = kLength<T>, kSums = (kInputs * kColumns + L - 1) / L * L;
    V<T> sums[kSums] = {};
    const T* x = X_ + k * Np_;
    const T* d = Z_ + j * Np_;
    for (Index i = 0; i < Np_; i += L, x += L, d += L) {
      V<T> pulls[J];
      for (int b = 0; b < J; ++b) pulls[b] = *reinterpret_cast<const V<T>*>(d + b * Np_);
      for (int a = 0; a < K; ++a) {
        const V<T> input = *reinterpret_cast<const V<T>*>(x + a * Np_);
        for (int b = 0; b < J; ++b) sums[a * J + b] += input * pulls[b];
      }
    }
    alignas(kVectorBytes) T entries[kSums];
    for (int s = 0; s < K * J; s += L) {
      sum_lanes<T>(sums + s);
      *reinterpret_cast<V<T>*>(entries + s) = sums[s];
    }
    for (int a = 0; a < K; ++a)
      for (int b = 0; b < J; ++b) W_gradient_[(k + a) * d1p_ + j + b] = -scale() * entries[a * J + b];
  }

  template <int K>
  void backward_rows(Index k) {
    Index j = 0;
    for (; j + kColumns <= used_neurons_; j += kColumns) backward_block<K, kColumns>(k, j);
    if constexpr (kColumns > 1)
      for (; j < used_neurons_; ++j) backward_block<K, 1>(k, j);
  }

  template <int K = kInputs>
  void backward_rows(Index rows, Index k) {
    if (rows == K) return backward_rows<K>(k);
    if constexpr (K > 1) backward_rows<K - 1>(rows, k);
  }

  void backward() {
    const Index blocks = (used_inputs_ + kInputs - 1) / kInputs;
    for (Index block = 0, begin = 0; block < blocks; ++block) {
      const Index end = (block + 1) * used_inputs_ / blocks;
      backward_rows(end - begin, begin);
      begin = end;
    }
  }

  const Index N_, d0_, d1_, d2_;
  const Options options_;
  const Index Np_, d1p_;  // With the padding that fills vectors and blocks.
  Index used_inputs_ = 0, used_neurons_ = 0;
  T label_norm_ = 0;
  std::unique_ptr<T, Free> memory_;
  // Rows of X_, Y_, Z_, E_ run along the samples, those of W_ and its like along the neurons.
  T *X_, *Z_, *Y_, *E_, *W_, *W_velocity_, *W_gradient_, *V_, *V_velocity_, *V_gradient_;
};

// Places of a run's integers.
enum { kStep, kEvaluated, kConvergedAt, kMeets, kStopped, kNumIntegers };

template <ffi::DataType kType>
using Array = ffi::Buffer<kType>;
template <ffi::DataType kType>
using Out = ffi::Result<ffi::Buffer<kType>>;

template <ffi::DataType kType>
ffi::Error advance(Array<kType> X, Array<kType> Y, Array<kType> W, Array<kType> W_velocity, Array<kType> W_gradient,
                   Array<kType> V, Array<kType> V_velocity, Array<kType> V_gradient, Array<kType> loss,
                   Array<kType> best_loss, Array<ffi::S32> integers, Array<ffi::S32> target, Out<kType> new_W,
                   Out<kType> new_W_velocity, Out<kType> new_W_gradient, Out<kType> new_V, Out<kType> new_V_velocity,
                   Out<kType> new_V_gradient, Out<kType> new_loss, Out<kType> new_best_loss,
                   Out<ffi::S32> new_integers, Out<kType> losses, double learning_rate, double momentum,
                   double tolerance, double at_zero, double gradient_scale, bool both_layers, bool first_passage,
                   std::int32_t criterion) {
  using T = ffi::NativeType<kType>;
  const auto sizes = X.dimensions();
  const std::int64_t N = sizes[sizes.size() - 2], d0 = sizes.back();
  const std::int64_t d1 = W.dimensions().back(), d2 = Y.dimensions().back();
  const std::int64_t count = target.element_count();
  const Options options{learning_rate, momentum,    tolerance,     at_zero,
                        gradient_scale, both_layers, first_passage, criterion};
  const FlushSubnormals flush;
  for (std::int64_t n = 0; n < count; ++n) {
    const auto hidden = n * d0 * d1, output = n * d1 * d2, moving = both_layers ? output : 0;
    Network<T> network(N, d0, d1, d2, options);
    if (!network.has_memory()) return ffi::Error(ffi::ErrorCode::kResourceExhausted, "out of memory for a network");
    std::int32_t state[kNumIntegers];
    std::copy_n(integers.typed_data() + n * kNumIntegers, kNumIntegers, state);
    network.load(state[kEvaluated], X.typed_data() + n * N * d0, Y.typed_data() + n * N * d2, W.typed_data() + hidden,
                 W_velocity.typed_data() + hidden, W_gradient.typed_data() + hidden, V.typed_data() + output,
                 V_velocity.typed_data() + moving, V_gradient.typed_data() + moving);
    T now = loss.typed_data()[n], best = best_loss.typed_data()[n];
    const std::int32_t step = target.typed_data()[n];
    auto done = [&] {
      return state[kEvaluated] && (!std::isfinite(now) || (first_passage && state[kMeets]) || state[kStopped]);
    };
    bool is_evaluated_here = false;
    while ((!state[kEvaluated] || state[kStep] < step) && !done()) {
      if (state[kEvaluated]) {
        network.update();
        ++state[kStep];
      }
      now = network.evaluate();
      is_evaluated_here = true;
      state[kEvaluated] = 1;
      best = std::min(best, std::isnan(now) ? std::numeric_limits<T>::infinity() : now);
      state[kMeets] = network.meets(now);
      if (state[kMeets] && state[kConvergedAt] < 0) state[kConvergedAt] = state[kStep];
    }
    network.store(new_W->typed_data() + hidden, new_W_velocity->typed_data() + hidden,
                  new_W_gradient->typed_data() + hidden, new_V->typed_data() + output,
                  new_V_velocity->typed_data() + moving, new_V_gradient->typed_data() + moving,
                  losses->typed_data() + n * N);
    new_loss->typed_data()[n] = now;
    new_best_loss->typed_data()[n] = best;
    // Whether the losses are of this theta: a run that takes no step keeps its own.
    state[kStopped] = is_evaluated_here;
    std::copy_n(state, kNumIntegers, new_integers->typed_data() + n * kNumIntegers);
  }
  return ffi::Error::Success();
}

template <ffi::DataType kType>
auto binding() {
  auto with_arguments = ffi::Ffi::Bind();
  return std::move(with_arguments)
      .template Arg<Array<kType>>().template Arg<Array<kType>>().template Arg<Array<kType>>()
      .template Arg<Array<kType>>().template Arg<Array<kType>>().template Arg<Array<kType>>()
      .template Arg<Array<kType>>().template Arg<Array<kType>>().template Arg<Array<kType>>()
      .template Arg<Array<kType>>().template Arg<Array<ffi::S32>>().template Arg<Array<ffi::S32>>()
      .template Ret<Array<kType>>().template Ret<Array<kType>>().template Ret<Array<kType>>()
      .template Ret<Array<kType>>().template Ret<Array<kType>>().template Ret<Array<kType>>()
      .template Ret<Array<kType>>().template Ret<Array<kType>>().template Ret<Array<ffi::S32>>()
      .template Ret<Array<kType>>()
      .template Attr<double>("learning_rate").template Attr<double>("momentum").template Attr<double>("tolerance")
      .template Attr<double>("at_zero").template Attr<double>("gradient_scale").template Attr<bool>("both_layers")
      .template Attr<bool>("first_passage").template Attr<std::int32_t>("criterion");
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(relu_sgd_descent_float32, advance<ffi::F32>, binding<ffi::F32>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(relu_sgd_descent_float64, advance<ffi::F64>, binding<ffi::F64>());

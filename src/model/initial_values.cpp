// The initial weights, the same bytes on every machine: SplitMix64 by counter, then the normal
// quantile of a uniform number by Wichura's rational approximation (algorithm AS 241, PPND16,
// 1988). Library functions (std::log, torch's normal_) differ in the last bits between CPUs and
// versions, and replicas of a stage must start identical.
#include <algorithm>
#include <cmath>
#include <string_view>
#include <thread>

#include "tessera/base/prng.h"
#include "tessera/model/stage_layout.h"

namespace tessera::model {
namespace {

using core::RunSpec;
using ports::TensorLayout;

template <size_t N>
double polynomial(const double (&coefficients)[N], double x) {
  double value = coefficients[N - 1];
  for (size_t i = N - 1; i-- > 0;) value = value * x + coefficients[i];
  return value;
}

// ln(x) for 0 < x < 1: x = m * 2^e with m in [sqrt(1/2), sqrt(2)), ln m = 2 artanh((m - 1) / (m +
// 1)) as a series.
double natural_log(double x) {
  int exponent = 0;
  double mantissa = std::frexp(x, &exponent);  // exact
  if (mantissa < 0.70710678118654752440) {
    mantissa *= 2;
    --exponent;
  }
  const double s = (mantissa - 1) / (mantissa + 1);
  const double square = s * s;
  double sum = 0;
  for (int odd = 23; odd >= 1; odd -= 2) sum = sum * square + 1.0 / odd;
  return 2 * s * sum + exponent * 0.69314718055994530942;
}

// The standard normal number that is exceeded with probability 1 - p; good to about 1e-16 relative,
// says the paper. p >= 2^-36 and 1 - p >= 2^-36, which keeps sqrt(-ln p) below 5, where the second
// approximation ends.
double normal_quantile(double p) {
  static constexpr double kCentreTop[] = {3.3871328727963666080e0, 1.3314166789178437745e2,
                                          1.9715909503065514427e3, 1.3731693765509461125e4,
                                          4.5921953931549871457e4, 6.7265770927008700853e4,
                                          3.3430575583588128105e4, 2.5090809287301226727e3};
  static constexpr double kCentreBottom[] = {1.0,
                                             4.2313330701600911252e1,
                                             6.8718700749205790830e2,
                                             5.3941960214247511077e3,
                                             2.1213794301586595867e4,
                                             3.9307895800092710610e4,
                                             2.8729085735721942674e4,
                                             5.2264952788528545610e3};
  static constexpr double kTailTop[] = {1.42343711074968357734e0,  4.63033784615654529590e0,
                                        5.76949722146069140550e0,  3.64784832476320460504e0,
                                        1.27045825245236838258e0,  2.41780725177450611770e-1,
                                        2.27238449892691845833e-2, 7.74545014278341407640e-4};
  static constexpr double kTailBottom[] = {1.0,
                                           2.05319162663775882187e0,
                                           1.67638483018380384940e0,
                                           6.89767334985100004550e-1,
                                           1.48103976427480074590e-1,
                                           1.51986665636164571966e-2,
                                           5.47593808499534494600e-4,
                                           1.05075007164441684324e-9};
  const double q = p - 0.5;
  if (std::abs(q) <= 0.425) {
    const double r = 0.180625 - q * q;
    return q * polynomial(kCentreTop, r) / polynomial(kCentreBottom, r);
  }
  const double r = std::sqrt(-natural_log(q < 0 ? p : 1 - p)) - 1.6;
  const double value = polynomial(kTailTop, r) / polynomial(kTailBottom, r);
  return q < 0 ? -value : value;
}

uint64_t name_hash(std::string_view name) {  // FNV-1a
  uint64_t hash = 0xcbf29ce484222325ull;
  for (char c : name) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3ull;
  return hash;
}

// A constant, or normal numbers of this standard deviation.
struct Distribution {
  double constant = 0;
  double deviation = 0;
};

bool ends_with(std::string_view name, std::string_view end) {
  return name.size() >= end.size() && name.substr(name.size() - end.size()) == end;
}

Distribution distribution_of(const RunSpec& spec, const TensorLayout& tensor) {
  const std::string_view name = tensor.name;
  const double width = spec.model.width;
  if (name.substr(0, 9) == "boundary.") {
    if (ends_with(name, ".gain")) return {0.02, 0};
    if (ends_with(name, ".encoder") || ends_with(name, ".decoder")) return {0, 1};
    // The last layers of the residual kind: near zero, so that the shortcut x[:r] is all there is
    // at first.
    if (ends_with(name, ".encoder_out") || ends_with(name, ".decoder_out")) return {0, 0.01};
    // A factorised anchor: table times basis has entries of deviation 0.02 like a full table.
    if (ends_with(name, ".anchor_basis")) return {0, 1 / std::sqrt(width)};
    if (ends_with(name, ".anchor")) {
      const double a = spec.boundary.anchor_rank;
      return {0, a > 0 ? 0.02 * std::sqrt(width / a) : 0.02};
    }
    return {0, spec.model.init_std};
  }
  if (tensor.shape.size() == 1) return {1, 0};  // norms
  if (ends_with(name, ".o_proj.weight") || ends_with(name, ".down_proj.weight")) {
    return {0, spec.model.init_std / std::sqrt(2.0 * spec.model.layers)};
  }
  return {0, spec.model.init_std};
}

void fill(const RunSpec& spec, const TensorLayout& tensor, uint64_t begin, uint64_t end,
          float* values) {
  const Distribution distribution = distribution_of(spec, tensor);
  if (distribution.deviation == 0) {
    std::fill(values, values + (end - begin), static_cast<float>(distribution.constant));
    return;
  }
  const uint64_t key = mix64(spec.training.seed ^ mix64(name_hash(tensor.name)));
  for (uint64_t i = begin; i < end; ++i) {
    const uint64_t bits = mix64(key + i * 0x9e3779b97f4a7c15ull) >> 29;  // 35 bits
    const double p = (static_cast<double>(bits) + 0.5) * 0x1.0p-35;
    values[i - begin] = static_cast<float>(normal_quantile(p) * distribution.deviation);
  }
}

// Values [begin, end) of the flat vector.
void fill_range(const RunSpec& spec, const std::vector<TensorLayout>& layout, uint64_t begin,
                uint64_t end, float* flat) {
  for (const TensorLayout& tensor : layout) {
    const uint64_t from = std::max(begin, tensor.offset);
    const uint64_t to = std::min(end, tensor.offset + tensor.count);
    if (from < to) fill(spec, tensor, from - tensor.offset, to - tensor.offset, flat + from);
  }
}

}  // namespace

std::vector<float> initial_values(const RunSpec& spec, StageIndex stage, int threads) {
  const std::vector<TensorLayout> layout = stage_layout(spec, stage);
  const uint64_t count = value_count(layout);
  std::vector<float> values(count);
  // A thread is worth its start for about a million values.
  const uint64_t processors = std::max(1u, std::thread::hardware_concurrency());
  const uint64_t wanted =
      threads > 0 ? static_cast<uint64_t>(threads) : std::min<uint64_t>(processors, 64);
  const uint64_t parts = std::clamp<uint64_t>(count >> 20, 1, wanted);
  {
    std::vector<std::jthread> workers;
    for (uint64_t part = 1; part < parts; ++part) {
      workers.emplace_back([&, part] {
        fill_range(spec, layout, count * part / parts, count * (part + 1) / parts, values.data());
      });
    }
    fill_range(spec, layout, 0, count / parts, values.data());
  }
  return values;
}

}  // namespace tessera::model

// tessera-bench codec: a microbatch's boundary tensor to its payload and back.
#include <fmt/format.h>

#include <cstdio>
#include <memory>

#include "apps/bench/bench.h"
#include "apps/bench/slices.h"
#include "tessera/model/measure_codec.h"

namespace tessera::apps {
namespace {

struct CodecBenchOptions {
  SliceBenchOptions over{.measure = {.steps = 50}};
  double compression = 128;
};

constexpr Codec kCodecs[] = {Codec::kBf16, Codec::kInt8, Codec::kInt4};

// What crosses the slice's boundary at the ratio: 1 is the full width in bf16.
StatusOr<core::RunSpec> spec_at(const Slice& slice, Codec codec, double compression) {
  core::RunSpec spec = spec_of(slice);
  spec.boundary.codec = codec;
  if (compression > 1) {
    spec.boundary.kind = core::BoundaryKind::kAnchored;
    spec.boundary.compression = compression;
  }
  TESSERA_RETURN_IF_ERROR(core::validate(&spec));
  return spec;
}

nlohmann::json row_of(const Slice& slice, const model::CodecCase& which, const BenchDevice& device,
                      const model::CodecMeasurement& measured) {
  const double bytes = static_cast<double>(which.rows * which.width * sizeof(float) + measured.payload_bytes);
  return {{"slice", slice.name},
          {"device", device.name},
          {"codec", core::name_of(which.codec)},
          {"rows", which.rows},
          {"width", which.width},
          {"payload_bytes", measured.payload_bytes},
          {"encode_us", measured.encode_seconds * 1e6},
          {"encode_stochastic_us", measured.encode_random_seconds * 1e6},
          {"decode_us", measured.decode_seconds * 1e6},
          {"copy_us", measured.copy_seconds * 1e6},
          {"encode_gb_per_s", bytes / measured.encode_seconds / 1e9},
          {"ceiling_gb_per_s", device.ceilings.bytes_per_second / 1e9},
          {"roofline", measured.copy_seconds / measured.encode_seconds}};
}

Status measure_slice(const CodecBenchOptions& options, const Slice& slice, const BenchDevice& device,
                     nlohmann::json* rows) {
  if (slice.is_whole()) return invalid_argument("{} is a whole model: it has no boundary", slice.name);
  for (const Codec codec : kCodecs) {
    for (const double compression : {1.0, options.compression}) {
      if (compression == 1.0 && options.compression == 1.0) continue;
      const StatusOr<core::RunSpec> spec = spec_at(slice, codec, compression);
      if (!spec.ok()) continue;  // the codec can't reach the ratio at this width
      const model::CodecCase which{codec, spec->tokens_per_microbatch(), spec->boundary.rank};
      TESSERA_ASSIGN_OR_RETURN(const model::CodecMeasurement measured,
                               model::measure_codec(which, device.name, options.over.measure));
      const nlohmann::json row = row_of(slice, which, device, measured);
      std::printf("%-18s %-5s %7llu %6llu %10llu %10.1f %12.1f %10.1f %10.1f %8.0f%%\n", slice.name,
                  row["codec"].get<std::string>().c_str(), static_cast<unsigned long long>(which.rows),
                  static_cast<unsigned long long>(which.width), static_cast<unsigned long long>(measured.payload_bytes),
                  measured.encode_seconds * 1e6, measured.encode_random_seconds * 1e6, measured.decode_seconds * 1e6,
                  measured.copy_seconds * 1e6, row["roofline"].get<double>() * 100);
      rows->push_back(row);
    }
  }
  return ok_status();
}

Status run_codec_bench(const CodecBenchOptions& options) {
  const std::string header = fmt::format("{:<18} {:<5} {:>7} {:>6} {:>10} {:>10} {:>12} {:>10} {:>10} {:>9}", "slice",
                                         "codec", "rows", "width", "payload", "encode us", "stochastic us", "decode us",
                                         "copy us", "roofline");
  return run_over_slices(options.over, header, [&](const Slice& slice, const BenchDevice& device, nlohmann::json* rows) {
    return measure_slice(options, slice, device, rows);
  });
}

}  // namespace

void add_codec_bench(CLI::App* app) {
  auto options = std::make_shared<CodecBenchOptions>();
  CLI::App* command = app->add_subcommand(
      "codec",
      "A microbatch's boundary tensor to its payload and back, at full width and compressed, beside a copy of the same "
      "bytes in the same run");
  add_slice_options(command, &options->over);
  command->add_option("--compression", options->compression, "The ratio beside full width")
      ->check(CLI::Range(1.0, 4096.0))
      ->capture_default_str();
  on_call(command, [options] { return run_codec_bench(*options); });
}

}  // namespace tessera::apps

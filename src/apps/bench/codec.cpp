// tessera-bench codec: a microbatch's boundary tensor to its payload and back.
#include <cstdio>
#include <memory>
#include <vector>

#include "apps/bench/bench.h"
#include "apps/bench/slices.h"
#include "tessera/model/measure_codec.h"

namespace tessera::apps {
namespace {

struct CodecBenchOptions {
  std::string device = "auto", json;
  std::vector<std::string> slices;
  double compression = 128;
  model::MeasureOptions measure{.warmup_steps = 5, .steps = 50, .blocks = 3};
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

nlohmann::json row_of(const Slice& slice, const model::CodecCase& which, const std::string& device,
                      const model::CodecMeasurement& measured, const model::Ceilings& ceilings) {
  const double bytes = static_cast<double>(which.rows * which.width * sizeof(float) + measured.payload_bytes);
  return {{"slice", slice.name},
          {"device", device},
          {"codec", core::name_of(which.codec)},
          {"rows", which.rows},
          {"width", which.width},
          {"payload_bytes", measured.payload_bytes},
          {"encode_us", measured.encode_seconds * 1e6},
          {"encode_stochastic_us", measured.encode_random_seconds * 1e6},
          {"decode_us", measured.decode_seconds * 1e6},
          {"copy_us", measured.copy_seconds * 1e6},
          {"encode_gb_per_s", bytes / measured.encode_seconds / 1e9},
          {"ceiling_gb_per_s", ceilings.bytes_per_second / 1e9},
          {"roofline", measured.copy_seconds / measured.encode_seconds}};
}

Status run_codec_bench(const CodecBenchOptions& options) {
  TESSERA_ASSIGN_OR_RETURN(const std::string device, model::choose_device(options.device));
  TESSERA_ASSIGN_OR_RETURN(const model::Ceilings ceilings, model::measure_ceilings(device));
  std::printf("%-18s %-5s %7s %6s %10s %10s %12s %10s %10s %9s\n", "slice", "codec", "rows", "width", "payload",
              "encode us", "stochastic us", "decode us", "copy us", "roofline");
  nlohmann::json rows = nlohmann::json::array();
  for (const Slice& slice : chosen_slices(options.slices, device, /*with_whole=*/false)) {
    if (slice.is_whole()) return invalid_argument("{} is a whole model: it has no boundary", slice.name);
    for (const Codec codec : kCodecs) {
      for (const double compression : {1.0, options.compression}) {
        if (compression == 1.0 && options.compression == 1.0) continue;
        const StatusOr<core::RunSpec> spec = spec_at(slice, codec, compression);
        if (!spec.ok()) continue;  // the codec can't reach the ratio at this width
        const model::CodecCase which{codec, spec->tokens_per_microbatch(), spec->boundary.rank};
        TESSERA_ASSIGN_OR_RETURN(const model::CodecMeasurement measured,
                                 model::measure_codec(which, device, options.measure));
        const nlohmann::json row = row_of(slice, which, device, measured, ceilings);
        std::printf("%-18s %-5s %7llu %6llu %10llu %10.1f %12.1f %10.1f %10.1f %8.0f%%\n", slice.name,
                    row["codec"].get<std::string>().c_str(), static_cast<unsigned long long>(which.rows),
                    static_cast<unsigned long long>(which.width),
                    static_cast<unsigned long long>(measured.payload_bytes), measured.encode_seconds * 1e6,
                    measured.encode_random_seconds * 1e6, measured.decode_seconds * 1e6, measured.copy_seconds * 1e6,
                    row["roofline"].get<double>() * 100);
        std::fflush(stdout);
        rows.push_back(row);
      }
    }
  }
  if (rows.empty()) return invalid_argument("no slice of that name; they are{}", names_of_slices());
  return write_report(options.json, rows);
}

}  // namespace

void add_codec_bench(CLI::App* app) {
  auto options = std::make_shared<CodecBenchOptions>();
  CLI::App* command = app->add_subcommand(
      "codec",
      "A microbatch's boundary tensor to its payload and back, at full width and compressed, beside a copy of the same "
      "bytes in the same run. Slices:" + names_of_slices());
  command->add_option("--device", options->device, "auto, cpu, cuda or cuda:N")->capture_default_str();
  command->add_option("--slice", options->slices, "Only these; several may be given");
  command->add_option("--compression", options->compression, "The ratio beside full width")
      ->check(CLI::Range(1.0, 4096.0))
      ->capture_default_str();
  command->add_option("--steps", options->measure.steps, "Calls of a timed block; the best of 3 counts")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  command->add_option("--json", options->json, "Write the table there");
  on_call(command, [options] { return run_codec_bench(*options); });
}

}  // namespace tessera::apps

// plan memory, plan box: what fits on the GPUs of a box, before it is rented.
#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "commands.h"
#include "common/daemon.h"
#include "tessera/config/run_config.h"
#include "tessera/core/memory_plan.h"

namespace tessera::apps {
namespace {

constexpr const char* kProgram = "tesseractl";
constexpr double kGigabyte = 1e9;

uint64_t whole(double bytes) { return static_cast<uint64_t>(std::llround(bytes)); }

struct MemoryFlags {
  double params = 0;
  uint32_t gpus = 1;
  uint32_t zero = 0;
  std::string accounting = "mixed";
  bool json = false;
};

int plan_memory(const MemoryFlags& flags) {
  const core::Accounting accounting = flags.accounting == "fp32" ? core::Accounting::kFp32 : core::Accounting::kMixed;
  const auto bytes = core::plan_state_bytes(flags.params, flags.gpus, flags.zero, accounting);
  if (!bytes.ok()) return fail(kProgram, bytes.status());
  if (flags.json) {
    const nlohmann::json of_gpu = {{"weights", whole(bytes->weights)},
                                   {"gradients", whole(bytes->gradients)},
                                   {"optimizer", whole(bytes->optimizer)},
                                   {"total", whole(bytes->total())}};
    fmt::print("{}\n", nlohmann::json{{"params", flags.params},
                                      {"gpus", flags.gpus},
                                      {"zero", flags.zero},
                                      {"accounting", flags.accounting},
                                      {"bytes_per_gpu", of_gpu}}
                           .dump());
    return kExitOk;
  }
  fmt::print("{:.4g} parameters on {} GPUs, ZeRO stage {}, {} accounting; of each GPU, in GB:\n", flags.params, flags.gpus,
             flags.zero, flags.accounting);
  fmt::print("weights {:.2f}, gradients {:.2f}, optimizer {:.2f}: {:.2f}\n", bytes->weights / kGigabyte,
             bytes->gradients / kGigabyte, bytes->optimizer / kGigabyte, bytes->total() / kGigabyte);
  return kExitOk;
}

struct BoxFlags {
  std::string config;
  std::vector<std::string> overrides;
  uint32_t gpus = 1;
  uint64_t gpu_memory_bytes = 0;
  bool json = false;
};

// The least stage of ZeRO that fits is the fastest one.
int least_fitting(const std::vector<core::BoxPlan>& plans, StageIndex stage) {
  for (const core::BoxPlan& plan : plans) {
    if (plan.stage == stage && plan.fits) return static_cast<int>(plan.zero_stage);
  }
  return -1;
}

int plan_box(const BoxFlags& flags) {
  const auto run = config::load_run_config(flags.config, flags.overrides);
  if (!run.ok()) return fail(kProgram, run.status());
  const auto plans = core::plan_box(run->spec, flags.gpus, flags.gpu_memory_bytes);
  if (!plans.ok()) return fail(kProgram, plans.status());
  nlohmann::json rows = nlohmann::json::array(), choices = nlohmann::json::array();
  for (const core::BoxPlan& plan : *plans) {
    rows.push_back({{"stage", plan.stage}, {"zero", plan.zero_stage}, {"states", whole(plan.states)},
                    {"activations", whole(plan.activations)}, {"buckets", whole(plan.buckets)}, {"total", whole(plan.total)},
                    {"fits", plan.fits}});
  }
  for (StageIndex stage = 0; stage < run->spec.pipeline.stages; ++stage) {
    const int zero = least_fitting(*plans, stage);
    choices.push_back(zero < 0 ? nlohmann::json(nullptr) : nlohmann::json(zero));
  }
  if (flags.json) {
    fmt::print("{}\n", nlohmann::json{{"bytes_per_gpu", rows}, {"zero_stage", choices}}.dump());
    return kExitOk;
  }
  fmt::print("bytes on each of {} GPUs with {:.1f} GB, in GB\n", flags.gpus,
             static_cast<double>(flags.gpu_memory_bytes) / kGigabyte);
  fmt::print("{:>5} {:>5} {:>9} {:>12} {:>8} {:>8}  {}\n", "stage", "zero", "states", "activations", "buckets", "total", "fits");
  for (const core::BoxPlan& plan : *plans) {
    fmt::print("{:>5} {:>5} {:>9.2f} {:>12.2f} {:>8.2f} {:>8.2f}  {}\n", plan.stage, plan.zero_stage, plan.states / kGigabyte,
               plan.activations / kGigabyte, plan.buckets / kGigabyte, plan.total / kGigabyte, plan.fits ? "yes" : "no");
  }
  for (StageIndex stage = 0; stage < run->spec.pipeline.stages; ++stage) {
    const int zero = least_fitting(*plans, stage);
    if (zero >= 0) {
      fmt::print("stage {}: zero_stage: {}\n", stage, zero);
    } else {
      fmt::print("stage {}: none fits; more GPUs, fewer layers in the stage (pipeline.stage_layers), a smaller "
                 "training.microbatch_size or training.recompute\n", stage);
    }
  }
  return kExitOk;
}

}  // namespace

void add_plan_commands(CLI::App& app, Action& action) {
  CLI::App* plan = app.add_subcommand("plan", "What fits on the GPUs of a box");
  plan->require_subcommand(1);

  CLI::App* memory = plan->add_subcommand("memory", "Memory of weights, gradients and optimizer on each GPU");
  const auto memory_flags = std::make_shared<MemoryFlags>();
  memory->add_option("--params", memory_flags->params, "Parameters of the stage: 7e9")->required();
  memory->add_option("--gpus", memory_flags->gpus)->capture_default_str();
  memory->add_option("--zero", memory_flags->zero, "0 to 3: what is sharded")->capture_default_str();
  memory->add_option("--accounting", memory_flags->accounting, "fp32: weights in fp32 and no masters; mixed: as Tessera on GPUs")
      ->check(CLI::IsMember({"fp32", "mixed"}))
      ->capture_default_str();
  memory->add_flag("--json", memory_flags->json);
  memory->callback([&action, memory_flags] { action = [=] { return plan_memory(*memory_flags); }; });

  CLI::App* box = plan->add_subcommand("box", "Which zero_stage a box needs for each stage of a run");
  const auto box_flags = std::make_shared<BoxFlags>();
  box->add_option("--config", box_flags->config, "The run's YAML")->required();
  box->add_option("--set", box_flags->overrides, "key=value over a key of the YAML")->allow_extra_args(false);
  box->add_option("--gpus", box_flags->gpus)->required();
  box->add_option("--gpu-memory", box_flags->gpu_memory_bytes, "Of one GPU: 80GB, 141GiB")
      ->required()
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/true));
  box->add_flag("--json", box_flags->json);
  box->callback([&action, box_flags] { action = [=] { return plan_box(*box_flags); }; });
}

}  // namespace tessera::apps

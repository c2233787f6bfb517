#include "tessera/model/whole_model.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>

#include <utility>

#include "model/failure.h"
#include "model/stage_function.h"
#include "model/token_batch.h"
#include "model/wire.h"
#include "tessera/model/stage_engine.h"

namespace tessera::model {

struct WholeModel::Implementation {
  struct Stage {
    StageFunction function;
    StageWeights weights;
  };

  Implementation(const core::RunSpec& run, const at::Device& where,
                 const std::vector<std::vector<float>>& values)
      : spec(run), device(where) {
    const at::TensorOptions compute =
        at::TensorOptions().device(device).dtype(device.is_cuda() ? at::kBFloat16 : at::kFloat);
    for (StageIndex stage = 0; stage < spec.pipeline.stages; ++stage) {
      const std::vector<float>& flat = values[stage];
      const at::Tensor borrowed = at::from_blob(const_cast<float*>(flat.data()),
                                                {static_cast<int64_t>(flat.size())}, at::kFloat);
      const at::Tensor copied = borrowed.to(compute, /*non_blocking=*/false, /*copy=*/true);
      stages.push_back(
          {StageFunction(spec, stage, compute),
           make_stage_weights(spec, stage, copied, /*version=*/0, /*requires_grad=*/false)});
    }
  }

  // ids [B, L], L <= T -> the normalised output of the last layer [B, L, d].
  StatusOr<at::Tensor> hidden(const at::Tensor& ids) const {
    const int64_t width = boundary_width(spec);
    at::Tensor boundary;
    for (const Stage& stage : stages) {
      const StageOutput output = stage.function.run(stage.weights, ids, boundary);
      if (stage.function.is_tail()) return output.value;
      TESSERA_ASSIGN_OR_RETURN(const ports::BoundaryPayload payload,
                               encode_rows(output.wire, forward_encoding(spec)));
      TESSERA_ASSIGN_OR_RETURN(boundary, decode_rows(payload, spec.boundary.codec, ids.numel(),
                                                     width, device, "activation"));
      boundary = boundary.view({ids.size(0), ids.size(1), width});
    }
    return internal_error("a model without a last stage");
  }

  // The logits of the last `rows` positions; 0: of all.
  StatusOr<std::vector<float>> logits(const std::vector<uint32_t>& ids, int64_t rows) const {
    const int64_t length = static_cast<int64_t>(ids.size());
    if (length == 0 || length > static_cast<int64_t>(spec.model.context)) {
      return invalid_argument("{} token ids; the model takes 1 to model.context {}", length,
                              spec.model.context);
    }
    TESSERA_RETURN_IF_ERROR(check_tokens(ids, spec.model.vocab));
    TESSERA_ASSIGN_OR_RETURN(at::Tensor states, hidden(token_tensor(ids, length, device)));
    if (rows > 0) states = states.narrow(1, length - rows, rows);
    const Stage& tail = stages.back();
    const at::Tensor values = tail.function.logits(tail.weights, states).to(at::kCPU).contiguous();
    const float* begin = values.const_data_ptr<float>();
    return std::vector<float>(begin, begin + values.numel());
  }

  StatusOr<double> loss(const std::vector<uint32_t>& tokens) const {
    const int64_t context = spec.model.context;
    if (tokens.empty() || tokens.size() % static_cast<size_t>(context + 1) != 0) {
      return invalid_argument("{} tokens; give whole windows of model.context + 1 = {}",
                              tokens.size(), context + 1);
    }
    TESSERA_RETURN_IF_ERROR(check_tokens(tokens, spec.model.vocab));
    const at::Tensor ids = token_tensor(tokens, context + 1, device);
    TESSERA_ASSIGN_OR_RETURN(const at::Tensor states, hidden(ids.narrow(1, 0, context)));
    const Stage& tail = stages.back();
    return tail.function.loss(tail.weights, states, ids.narrow(1, 1, context)).item<double>();
  }

  core::RunSpec spec;
  at::Device device;
  std::vector<Stage> stages;
};

WholeModel::WholeModel(std::unique_ptr<Implementation> implementation)
    : implementation_(std::move(implementation)) {}
WholeModel::~WholeModel() = default;

StatusOr<std::unique_ptr<WholeModel>> WholeModel::create(
    const core::RunSpec& spec, const std::vector<std::vector<float>>& stages,
    const std::string& device, int threads) {
  core::RunSpec checked = spec;
  TESSERA_RETURN_IF_ERROR(core::validate(&checked));
  if (stages.size() != checked.pipeline.stages) {
    return invalid_argument("weights of {} stages, but pipeline.stages is {}", stages.size(),
                            checked.pipeline.stages);
  }
  for (StageIndex stage = 0; stage < checked.pipeline.stages; ++stage) {
    const uint64_t expected = value_count(stage_layout(checked, stage));
    if (stages[stage].size() == expected) continue;
    return invalid_argument(
        "stage {}: {} values, but the specification wants {}; the weights are of another run",
        stage, stages[stage].size(), expected);
  }
  TESSERA_ASSIGN_OR_RETURN(const std::string chosen, choose_device(device));
  return guarded("loading the model", [&]() -> StatusOr<std::unique_ptr<WholeModel>> {
    if (threads > 0) at::set_num_threads(threads);
    const at::Device torch_device(chosen);
    const c10::DeviceGuard on_device(torch_device);
    const c10::NoGradGuard no_graph;
    return std::unique_ptr<WholeModel>(
        new WholeModel(std::make_unique<Implementation>(checked, torch_device, stages)));
  });
}

StatusOr<double> WholeModel::loss(const std::vector<uint32_t>& tokens) {
  return guarded("evaluation", [&] {
    const c10::DeviceGuard on_device(implementation_->device);
    const c10::NoGradGuard no_graph;
    return implementation_->loss(tokens);
  });
}

StatusOr<std::vector<float>> WholeModel::logits(const std::vector<uint32_t>& ids) {
  return guarded("evaluation", [&] {
    const c10::DeviceGuard on_device(implementation_->device);
    const c10::NoGradGuard no_graph;
    return implementation_->logits(ids, 0);
  });
}

StatusOr<std::vector<float>> WholeModel::last_logits(const std::vector<uint32_t>& ids) {
  return guarded("evaluation", [&] {
    const c10::DeviceGuard on_device(implementation_->device);
    const c10::NoGradGuard no_graph;
    return implementation_->logits(ids, 1);
  });
}

}  // namespace tessera::model

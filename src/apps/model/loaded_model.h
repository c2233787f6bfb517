// A checkpoint ready to be asked.
#pragma once

#include <memory>

#include "apps/model/commands.h"
#include "tessera/base/status.h"
#include "tessera/core/data_plan.h"
#include "tessera/core/run_spec.h"
#include "tessera/data/tokenizer.h"
#include "tessera/model/whole_model.h"

namespace tessera::apps {

struct LoadedModel {
  core::RunSpec spec;
  core::DataPlan data;
  std::unique_ptr<model::WholeModel> model;
};
StatusOr<LoadedModel> load_model(const ModelOptions& options);

// The tokenizer that the model was trained with; `options` must say where it is unless it is bytes.
StatusOr<std::unique_ptr<data::Tokenizer>> load_model_tokenizer(const LoadedModel& loaded,
                                                                const ModelOptions& options);

}  // namespace tessera::apps

#include "tessera/node/restage.h"

#include <algorithm>
#include <cstring>
#include <map>

#include "tessera/core/stage_layout.h"
#include "tessera/node/objects.h"

namespace tessera::node {
namespace {

struct Place {
  StageIndex stage = 0;
  uint64_t offset = 0;
  uint64_t count = 0;
};

std::map<std::string, Place> places_of(const core::RunSpec& spec) {
  std::map<std::string, Place> places;
  for (StageIndex s = 0; s < spec.pipeline.stages; ++s) {
    for (const core::TensorLayout& tensor : core::stage_layout(spec, s)) {
      places[tensor.name] = {s, tensor.offset, tensor.count};
    }
  }
  return places;
}

// The state of one new stage, put together from the old ones that have its tensors.
StatusOr<std::string> new_state(ports::BlobLink& blobs, const RestageJob& job,
                                const std::map<std::string, Place>& places, StageIndex stage) {
  const uint64_t values = core::stage_value_count(job.after, stage);
  std::string state(2 * values * sizeof(float), '\0');
  std::map<StageIndex, std::vector<core::TensorLayout>> sources;
  for (core::TensorLayout& tensor : core::stage_layout(job.after, stage)) {
    const auto from = places.find(tensor.name);
    if (from == places.end() || from->second.count != tensor.count) {
      return internal_error("tensor {} is in none of the old stages", tensor.name);
    }
    sources[from->second.stage].push_back(std::move(tensor));
  }
  for (const auto& [source, tensors] : sources) {
    const uint64_t old_values = core::stage_value_count(job.before, source);
    TESSERA_ASSIGN_OR_RETURN(const std::string old, get_object(blobs, job.states[source], 2 * old_values * sizeof(float)));
    for (const core::TensorLayout& tensor : tensors) {
      const uint64_t at = places.at(tensor.name).offset;
      for (const uint64_t half : {0, 1}) {  // base, then momentum
        std::memcpy(state.data() + (half * values + tensor.offset) * sizeof(float),
                    old.data() + (half * old_values + at) * sizeof(float), tensor.count * sizeof(float));
      }
    }
  }
  return state;
}

}  // namespace

core::StagesChanged restage(ports::BlobLink& blobs, const RestageJob& job) {
  core::StagesChanged changed;
  changed.id = job.id;
  const std::map<std::string, Place> places = places_of(job.before);
  for (StageIndex s = 0; s < job.after.pipeline.stages; ++s) {
    const StatusOr<std::string> state = new_state(blobs, job, places, s);
    const StatusOr<Digest> object = state.ok() ? put_object(blobs, *state) : state.status();
    if (!object.ok()) {
      changed.why = fmt::format("the new stage {} could not be made: {}", s, message_of(object.status()));
      return changed;
    }
    changed.stage_values.push_back(core::stage_value_count(job.after, s));
    changed.states.push_back(*object);
  }
  changed.ok = true;
  return changed;
}

}  // namespace tessera::node

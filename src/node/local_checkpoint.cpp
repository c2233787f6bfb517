#include "local_checkpoint.h"

#include <fmt/format.h>

#include "tessera/base/archive.h"
#include "tessera/base/bytes.h"
#include "tessera/base/crypto.h"
#include "tessera/base/files.h"
#include "tessera/node/objects.h"

namespace tessera::node {
namespace {

constexpr std::string_view kStageMagic = "TSST";
constexpr std::string_view kCheckpointMagic = "TSLC";
constexpr std::string_view kNoteMagic = "TSLN";
constexpr uint32_t kVersion = 1;
constexpr size_t kStageHeaderBytes = 4 + 4 + sizeof(StageIndex) + sizeof(Epoch);
constexpr size_t kMaxNoteBytes = 4096;

std::string stage_path(const std::string& directory) { return directory + "/stage_state.bin"; }
std::string checkpoint_path(const std::string& directory) {
  return directory + "/local_checkpoint.bin";
}
std::string note_path(const std::string& directory) { return directory + "/steps.bin"; }

// magic, version, then content, then the digest of all before it.
std::string sealed(std::string_view magic, const std::string& header, std::string_view body) {
  ByteWriter writer;
  writer.raw(magic.data(), magic.size());
  writer.number(kVersion);
  writer.number(static_cast<uint32_t>(header.size()));
  writer.raw(header.data(), header.size());
  writer.raw(body.data(), body.size());
  std::string bytes = writer.take();
  const Digest digest = digest_of(bytes);
  return bytes.append(digest.view());
}

struct Unsealed {
  std::string_view header;
  std::string_view body;
};

StatusOr<Unsealed> unseal(std::string_view magic, std::string_view bytes) {
  const size_t digest_bytes = Digest{}.view().size();
  if (bytes.size() < digest_bytes) return data_loss("{} bytes", bytes.size());
  const std::string_view covered = bytes.substr(0, bytes.size() - digest_bytes);
  ByteReader reader(covered);
  const std::string_view found = reader.raw(magic.size());
  const auto version = reader.number<uint32_t>();
  Unsealed content;
  content.header = reader.text();
  if (!reader.ok() || found != magic || version != kVersion)
    return data_loss("not of version {}", kVersion);
  if (digest_of(covered).view() != bytes.substr(covered.size()))
    return data_loss("its checksum does not fit");
  content.body = reader.raw(reader.remaining());
  return content;
}

struct SavedCheckpoint {
  core::LocalCheckpoint about;
  core::LocalState state;
};

StatusOr<SavedCheckpoint> read_checkpoint(const std::string& directory) {
  TESSERA_ASSIGN_OR_RETURN(const std::string bytes, read_file(checkpoint_path(directory)));
  TESSERA_ASSIGN_OR_RETURN(const Unsealed content, unseal(kCheckpointMagic, bytes));
  SavedCheckpoint saved;
  if (!decode(content.header, &saved.about)) return data_loss("its header can't be read");
  TESSERA_ASSIGN_OR_RETURN(saved.state, decode_local_state(content.body));
  return saved;
}

std::optional<core::StepNote> read_note(const std::string& directory,
                                        const RecoveryRequest& request) {
  const auto bytes = read_file(note_path(directory), kMaxNoteBytes);
  if (!bytes.ok()) return std::nullopt;
  const auto content = unseal(kNoteMagic, *bytes);
  core::StepNote note;
  if (!content.ok() || !decode(content->header, &note)) return std::nullopt;
  if (note.run_id != request.run_id || note.stage != request.assignment.stage) return std::nullopt;
  return note;
}

// The base that the checkpoint goes on from, where the stage is at its beginning: the seed makes
// the same again, but here it lies already.
Status take_seed_base(const std::string& directory, const core::LocalCheckpoint& about,
                      uint64_t values, Recovery* recovery) {
  TESSERA_ASSIGN_OR_RETURN(const std::string bytes, read_file(stage_path(directory)));
  const size_t state_bytes = 2 * values * sizeof(float);
  if (bytes.size() != kStageHeaderBytes + state_bytes)
    return data_loss("the copy of the base has {} bytes", bytes.size());
  const std::string_view state = std::string_view(bytes).substr(kStageHeaderBytes);
  std::vector<float> base = values_of(state.substr(0, state.size() / 2));
  recovery->momentum = values_of(state.substr(state.size() / 2));
  TESSERA_ASSIGN_OR_RETURN(recovery->base_name, name_stage_state(base, recovery->momentum));
  if (recovery->base_name != about.base)
    return data_loss("the copy of the base is of another epoch");
  recovery->base = std::make_shared<const std::vector<float>>(std::move(base));
  return ok_status();
}

// Why this checkpoint can't be gone on from; empty if it can, at least for its moments.
std::string misfit(const SavedCheckpoint& saved, const RecoveryRequest& request) {
  if (saved.about.run_id != request.run_id) return "it is of another run";
  if (saved.about.stage != request.assignment.stage)
    return fmt::format("it is of stage {}", saved.about.stage);
  if (saved.state.masters.size() != request.values) {
    return fmt::format("it has {} values, the stage has {}", saved.state.masters.size(),
                       request.values);
  }
  return "";
}

}  // namespace

Status write_stage_copy(const std::string& directory, StageIndex stage, Epoch epoch,
                        const std::vector<float>& base, const std::vector<float>& momentum) {
  ByteWriter header;
  header.raw(kStageMagic.data(), kStageMagic.size());
  header.number(kVersion);
  header.number(stage);
  header.number(epoch);
  return write_pieces_atomic(stage_path(directory),
                             {header.take(), bytes_of(base), bytes_of(momentum)});
}

Status save_local_checkpoint(const std::string& directory, const core::LocalCheckpoint& about,
                             const core::LocalState& state) {
  return write_file_atomic(checkpoint_path(directory),
                           sealed(kCheckpointMagic, encode(about), encode_local_state(state)));
}

Status note_steps(const std::string& directory, const core::StepNote& note) {
  return write_file_quickly(note_path(directory), sealed(kNoteMagic, encode(note), ""));
}

Recovery recover_local_state(const std::string& directory, const RecoveryRequest& request) {
  Recovery recovery;
  const std::optional<core::StepNote> note = read_note(directory, request);
  if (note) {
    recovery.about.steps = note->steps;
    recovery.about.merged_steps = note->steps;  // unless they are recovered
    recovery.about.steps_lost = note->steps - std::min(note->steps, note->merged_steps);
  }
  if (!file_exists(checkpoint_path(directory))) return recovery;
  StatusOr<SavedCheckpoint> saved = read_checkpoint(directory);
  const std::string why = saved.ok() ? misfit(*saved, request) : message_of(saved.status());
  if (!why.empty()) {
    recovery.about.text = fmt::format("this miner's own checkpoint is not used: {}", why);
    return recovery;
  }
  const core::LocalCheckpoint& about = saved->about;
  recovery.about.steps = std::max(recovery.about.steps, about.steps);
  const bool at_seed = request.base == nullptr;
  Status seed_base = ok_status();
  if (at_seed && about.epoch == 0)
    seed_base = take_seed_base(directory, about, request.values, &recovery);
  const bool same_base = about.epoch == request.assignment.epoch &&
                         (at_seed ? recovery.base != nullptr && seed_base.ok()
                                  : about.base == request.assignment.state);
  if (same_base) {
    recovery.about.steps_lost = recovery.about.steps - about.steps;
    recovery.about.text =
        fmt::format("goes on from this miner's own checkpoint of {} local steps; {} are lost",
                    about.steps, recovery.about.steps_lost);
    recovery.about.checkpoint = about;
    if (note) recovery.about.merged_steps = note->merged_steps;
  } else if (at_seed) {
    recovery.about.text =
        fmt::format("this miner's own checkpoint is not used: {}",
                    seed_base.ok() ? "the stage is at its beginning" : message_of(seed_base));
    return recovery;
  } else {
    saved->state.masters = *request.base;
    saved->state.gradient.clear();
    saved->state.gradient_microbatches = 0;
    saved->state.residual.clear();
    recovery.about.moments = true;
    recovery.about.text = fmt::format(
        "takes the moments of this miner's own checkpoint; its weights are of epoch {}, the "
        "stage's of epoch {}",
        about.epoch, request.assignment.epoch);
  }
  recovery.state = std::make_shared<const core::LocalState>(std::move(saved->state));
  return recovery;
}

}  // namespace tessera::node

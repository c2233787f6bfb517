// Checkpoints as folders of safetensors files (docs/formats/checkpoint.md has the details):
//
//   ROOT/latest                                name of the newest folder, one line
//   ROOT/step-000000012345/                    named by the microbatches that are done
//     run.json                                 counters, run specification, data plan, and the
//                                              size and BLAKE2b digest of every other file
//     stage-K.safetensors                      the model
//     stage-K.outer.safetensors                base.<name>, momentum.<name>
//     stage-K.miner-1a2b3c4d.safetensors       master.<name>, first_moment.<name>,
//                                              second_moment.<name>, gradient.<name> if there is
//                                              one
//
// A folder is written under a temporary name, flushed, renamed, and only then named by `latest`:
// after a crash at any instant ROOT/latest names a whole checkpoint.
#pragma once

#include <string>
#include <utility>

#include "tessera/base/status.h"
#include "tessera/ports/checkpoint_store.h"

namespace tessera::store {

// Any thread, one at a time. Two writers of one root exclude each other by a file lock.
class CheckpointFolder final : public ports::CheckpointStore {
 public:
  // The folder is made by the first write.
  explicit CheckpointFolder(std::string root) : root_(std::move(root)) {}

  // Returns the step folder. INVALID_ARGUMENT: the checkpoint contradicts itself.
  // FAILED_PRECONDITION: another process writes there. After a failure `latest` names the
  // checkpoint before. Only folders of the same run are ever removed to keep no more than
  // spec.checkpoint.keep, the oldest first.
  StatusOr<std::string> write(const ports::Checkpoint& checkpoint) override;

 private:
  const std::string root_;
};

// The step folder that ROOT/latest names. NOT_FOUND if there is none, saying what is there instead.
StatusOr<std::string> latest_checkpoint(const std::string& root);

// `path`: a root (its `latest` is followed) or one step folder. Every size, digest, tensor name and
// shape is checked before it is used. NOT_FOUND: nothing there, or a file is missing.
// DATA_LOSS: damaged. FAILED_PRECONDITION: written by a version this program can't read. Messages
// name the file and what to do.
StatusOr<ports::Checkpoint> read_checkpoint(const std::string& path);

// The same without what only training needs: base, momentum and miners stay empty and their files
// are not read. For evaluation and export.
StatusOr<ports::Checkpoint> read_checkpoint_weights(const std::string& path);

}  // namespace tessera::store

// What has come of a large object so far, in a file: a process that is started again goes on where the one before ended.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tessera/core/object.h"

namespace tessera::node {

// One object at a time. A file that can't be written costs a warning and the benefit, nothing else.
class PartialObject {
 public:
  // `folder` empty: nothing is kept.
  explicit PartialObject(std::string folder) : folder_(std::move(folder)) {}
  ~PartialObject() { close(); }
  PartialObject(const PartialObject&) = delete;
  PartialObject& operator=(const PartialObject&) = delete;

  // Puts the chunks that are there, and are what the manifest names, into `content`, which has the object's size. Their numbers.
  // What is there of other objects is deleted.
  std::vector<uint64_t> open(const core::ObjectManifest& manifest, std::string* content);
  // Any thread between open() and finish(), each at its own place.
  void write(uint64_t at, std::string_view bytes);
  // The object is whole, or not wanted any more.
  void finish();

 private:
  std::string path(const std::string& object) const;
  void close();

  const std::string folder_;
  std::string path_;
  int file_ = -1;
};

}  // namespace tessera::node

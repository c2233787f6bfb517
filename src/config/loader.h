// Reads one YAML file and overrides into a table of keys, and says of every error where it is.
// Remembers where each key got its value, so that a rule checked afterwards can be reported at its
// place too. Used by one thread.
#pragma once

#include <yaml-cpp/yaml.h>

#include <map>
#include <string>
#include <vector>

#include "config/field.h"
#include "tessera/base/status.h"

namespace tessera::config {

class Loader {
 public:
  // `path` may be empty: no file. Errors call the file by this path.
  Loader(FieldTable table, std::string path);

  // The file first, then the overrides in their order.
  Status load(const std::vector<std::string>& overrides);

  // `violation` is OK or its message begins with "key: ": the same with the place where that key
  // got its value in front.
  Status locate(const Status& violation) const;

  bool is_overridden(const std::string& key) const { return overrides_.contains(key); }

 private:
  Status load_file();
  Status load_map(const YAML::Node& map, const std::string& section);
  Status load_entry(const YAML::Node& key, const YAML::Node& value, const std::string& section);
  Status load_override(const std::string& text);

  const Field* find(const std::string& key) const;
  std::string first_key_of(const std::string& section) const;  // empty if there is no such section
  bool is_section(const std::string& name) const;
  std::string hint_for_file(const std::string& name, const std::string& section) const;
  std::string hint_for_override(const std::string& key) const;
  std::string place(const YAML::Node& node) const;  // "FILE:LINE"

  const FieldTable table_;
  const std::string path_;
  std::map<std::string, int> lines_;              // of the keys and sections in the file, from 1
  std::map<std::string, std::string> overrides_;  // key: the whole text of the override that set it
};

// Insertions, deletions, replacements and swaps of neighbours that turn one text into the other
// (optimal string alignment).
size_t edit_distance(const std::string& a, const std::string& b);

}  // namespace tessera::config

// A table of keys: the one definition that loading, writing and the reference page share. A new key
// is one line in a table.
#pragma once

#include <yaml-cpp/yaml.h>

#include <functional>
#include <string>
#include <vector>

#include "config/value.h"
#include "tessera/base/status.h"

namespace tessera::config {

// One key, bound to the variable it sets, which must outlive the table.
struct Field {
  std::string key;      // "training.steps", or without a section: "listen"
  std::string type;     // for people
  std::string allowed;  // range or rule, for people; empty: whatever the type allows
  std::string description;
  std::function<Status(const YAML::Node&)> read;
  std::function<std::string()> write;

  // "training" and "steps"; the section is empty for a key that has none.
  std::string section() const {
    return key.substr(0, key.find('.') == std::string::npos ? 0 : key.find('.'));
  }
  std::string name() const { return key.substr(key.find('.') + 1); }
};
using FieldTable = std::vector<Field>;

// `kind` is one of the kinds of config/value.h.
template <class Kind>
Field field(std::string key, Kind kind, std::string allowed, std::string description) {
  return {std::move(key),
          type_of(kind),
          std::move(allowed),
          std::move(description),
          [kind](const YAML::Node& node) { return read_value(node, kind); },
          [kind] { return write_value(kind); }};
}

// Every key with its present value.
std::string write_yaml(const FieldTable& table);

// A heading and a table for each section; the present values are the defaults.
std::string write_reference(const FieldTable& table);

}  // namespace tessera::config

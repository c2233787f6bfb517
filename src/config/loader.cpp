#include "config/loader.h"

#include <algorithm>

#include "tessera/base/files.h"

namespace tessera::config {
namespace {

constexpr size_t kMaxFileBytes = 1 << 20;

int line_of(const YAML::Mark& mark) { return mark.is_null() ? 0 : mark.line + 1; }

// The nearest candidate that a slip of the fingers explains; empty if there is none.
std::string nearest(const std::string& text, const std::vector<std::string>& candidates) {
  std::string best;
  size_t best_distance = std::max<size_t>(1, text.size() / 3) + 1;
  for (const std::string& candidate : candidates) {
    const size_t distance = edit_distance(text, candidate);
    if (distance >= best_distance) continue;
    best = candidate;
    best_distance = distance;
  }
  return best;
}

std::string join(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

std::string without_space(const std::string& text) {
  const size_t begin = text.find_first_not_of(" \t");
  if (begin == std::string::npos) return "";
  return text.substr(begin, text.find_last_not_of(" \t") - begin + 1);
}

// Exactly one document, or none at all. Throws YAML::Exception.
StatusOr<YAML::Node> parse_one_document(const std::string& text) {
  // yaml-cpp 0.7 takes a quote that is never closed for complete if a line break is the last it
  // sees.
  const std::string trimmed = text.substr(0, text.find_last_not_of(" \t\r\n") + 1);
  const std::vector<YAML::Node> documents = YAML::LoadAll(trimmed);
  if (documents.size() > 1) return invalid_argument("more than one YAML document");
  return documents.empty() ? YAML::Node() : documents.front();
}

}  // namespace

size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<size_t> before_last(b.size() + 1), last(b.size() + 1), row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) last[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = last[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      row[j] = std::min({replaced, last[j] + 1, row[j - 1] + 1});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        row[j] = std::min(row[j], before_last[j - 2] + 1);
      }
    }
    before_last.swap(last);
    last.swap(row);
  }
  return last[b.size()];
}

Loader::Loader(FieldTable table, std::string path)
    : table_(std::move(table)), path_(std::move(path)) {}

Status Loader::load(const std::vector<std::string>& overrides) {
  if (!path_.empty()) TESSERA_RETURN_IF_ERROR(load_file());
  for (const std::string& text : overrides) {
    TESSERA_RETURN_IF_ERROR(annotate(load_override(text), "--set " + text));
  }
  return ok_status();
}

Status Loader::load_file() {
  TESSERA_ASSIGN_OR_RETURN(const std::string text, read_file(path_, kMaxFileBytes));
  try {
    const StatusOr<YAML::Node> document = parse_one_document(text);
    TESSERA_RETURN_IF_ERROR(annotate(document.status(), path_));
    const YAML::Node& root = *document;
    if (root.IsNull()) return ok_status();  // empty, or everything is commented out
    if (!root.IsMap()) {
      return invalid_argument("{}: expected sections and keys, got {}", place(root),
                              describe(root));
    }
    return load_map(root, "");
  } catch (const YAML::Exception& failure) {
    return invalid_argument("{}:{}: not valid YAML: {}", path_, line_of(failure.mark), failure.msg);
  }
}

Status Loader::load_map(const YAML::Node& map, const std::string& section) {
  for (const auto& entry : map) {
    TESSERA_RETURN_IF_ERROR(load_entry(entry.first, entry.second, section));
  }
  return ok_status();
}

Status Loader::load_entry(const YAML::Node& key_node, const YAML::Node& value,
                          const std::string& section) {
  if (!key_node.IsScalar()) {
    return invalid_argument("{}: a key must be a plain text, got {}", place(key_node),
                            describe(key_node));
  }
  const std::string name = key_node.Scalar();
  const std::string key = section.empty() ? name : section + "." + name;
  const auto unknown = [&] {
    return invalid_argument("{}: {}: unknown key; {}", place(key_node), key,
                            hint_for_file(name, section));
  };
  if (name.find('.') != std::string::npos) return unknown();  // "training.steps: 5" is no section
  const auto [first, is_first] = lines_.emplace(key, line_of(key_node.Mark()));
  if (!is_first) {
    return invalid_argument("{}: {}: given twice; the first is on line {}", place(key_node), key,
                            first->second);
  }
  if (const Field* field = find(key)) {
    const std::string prefix = fmt::format("{}: {}", place(key_node), key);
    return annotate(field->read(value), prefix);
  }
  if (!section.empty() || !is_section(key)) return unknown();
  if (value.IsNull()) return ok_status();  // a section with all its keys commented out
  if (!value.IsMap()) {
    return invalid_argument("{}: {}: expected a section of keys, got {}", place(key_node), key,
                            describe(value));
  }
  return load_map(value, key);
}

Status Loader::load_override(const std::string& text) {
  const size_t equals = text.find('=');
  if (equals == std::string::npos) {
    return invalid_argument("expected key=value, such as training.steps=200");
  }
  const std::string key = without_space(text.substr(0, equals));
  const Field* field = find(key);
  if (field == nullptr && is_section(key)) {
    return invalid_argument("'{}' is a section; set one of its keys, such as {}", key,
                            first_key_of(key));
  }
  if (field == nullptr) return invalid_argument("unknown key; {}", hint_for_override(key));
  try {
    TESSERA_ASSIGN_OR_RETURN(const YAML::Node value, parse_one_document(text.substr(equals + 1)));
    TESSERA_RETURN_IF_ERROR(field->read(value));
  } catch (const YAML::Exception& failure) {
    return invalid_argument("not valid YAML: {}", failure.msg);
  }
  overrides_[key] = text;
  return ok_status();
}

Status Loader::locate(const Status& violation) const {
  if (violation.ok()) return violation;
  const std::string message = message_of(violation);
  const std::string key = message.substr(0, message.find(": "));
  if (const auto found = overrides_.find(key); found != overrides_.end()) {
    return annotate(violation, "--set " + found->second);
  }
  if (const auto found = lines_.find(key); found != lines_.end()) {
    return annotate(violation, fmt::format("{}:{}", path_, found->second));
  }
  const Field* field = find(key);
  TESSERA_CHECK(field != nullptr);  // a rule that names no key could not be mended
  const std::string where = path_.empty() ? "" : path_ + ": ";
  return invalid_argument("{}{} (default {}){}", where, key, field->write(),
                          message.substr(key.size()));
}

const Field* Loader::find(const std::string& key) const {
  const auto found = std::find_if(table_.begin(), table_.end(),
                                  [&](const Field& field) { return field.key == key; });
  return found == table_.end() ? nullptr : &*found;
}

bool Loader::is_section(const std::string& name) const {
  return !name.empty() && !first_key_of(name).empty();
}

std::string Loader::first_key_of(const std::string& section) const {
  const auto found = std::find_if(table_.begin(), table_.end(),
                                  [&](const Field& field) { return field.section() == section; });
  return found == table_.end() ? "" : found->key;
}

std::string Loader::hint_for_file(const std::string& name, const std::string& section) const {
  if (section.empty() && find(name) != nullptr) {
    const Field* field = find(name);
    return fmt::format("in a file write it as '{}' in the section '{}'", field->name(),
                       field->section());
  }
  std::vector<std::string> siblings;
  for (const Field& field : table_) {
    if (field.section() == section) siblings.push_back(field.name());
    const bool new_section = section.empty() && !field.section().empty() &&
                             (siblings.empty() || siblings.back() != field.section());
    if (new_section) siblings.push_back(field.section());
  }
  if (const std::string near = nearest(name, siblings); !near.empty()) {
    return fmt::format("did you mean '{}'?", near);
  }
  for (const Field& field : table_) {
    if (field.name() == name) return fmt::format("did you mean '{}'?", field.key);
  }
  return fmt::format("the keys here are: {}", join(siblings));
}

std::string Loader::hint_for_override(const std::string& key) const {
  const size_t dot = key.find('.');
  const std::string section = dot == std::string::npos ? "" : key.substr(0, dot);
  const std::string name = key.substr(section.empty() ? 0 : dot + 1);
  std::vector<std::string> all;
  std::vector<std::string> siblings;
  for (const Field& field : table_) {
    all.push_back(field.key);
    if (field.section() == section) siblings.push_back(field.name());
  }
  const std::string prefix = section.empty() ? "" : section + ".";
  if (const std::string near = nearest(name, siblings); !near.empty()) {
    return fmt::format("did you mean {}{}?", prefix, near);
  }
  for (const Field& field : table_) {
    if (field.name() == name) return fmt::format("did you mean {}?", field.key);
  }
  if (const std::string near = nearest(key, all); !near.empty()) {
    return fmt::format("did you mean {}?", near);
  }
  if (siblings.empty()) return fmt::format("the keys are: {}", join(all));
  return fmt::format("the keys of '{}' are: {}", section, join(siblings));
}

std::string Loader::place(const YAML::Node& node) const {
  return fmt::format("{}:{}", path_, line_of(node.Mark()));
}

}  // namespace tessera::config

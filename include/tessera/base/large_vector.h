// Vectors of a whole stage's numbers, in huge pages where the system gives them on request (Linux: transparent_hugepage is
// "madvise" or "always"): their first touch costs one page fault for each 2 MiB instead of 512.
#pragma once

#include <cstddef>
#include <vector>

namespace tessera {

// To be called before the memory is touched. A wish: nothing changes where it can't be had.
void prefer_huge_pages(void* begin, size_t bytes);

// As v->resize(count), for a vector that has no memory yet or is to get more.
template <class T>
void resize_large(std::vector<T>* v, size_t count) {
  if (count > v->capacity()) {
    v->reserve(count);
    prefer_huge_pages(v->data() + v->size(), (v->capacity() - v->size()) * sizeof(T));
  }
  v->resize(count);
}

template <class T>
std::vector<T> large_vector(size_t count) {
  std::vector<T> v;
  resize_large(&v, count);
  return v;
}

template <class T>
std::vector<T> large_copy(const std::vector<T>& other) {
  std::vector<T> v;
  v.reserve(other.size());
  prefer_huge_pages(v.data(), other.size() * sizeof(T));
  v.assign(other.begin(), other.end());
  return v;
}

}  // namespace tessera

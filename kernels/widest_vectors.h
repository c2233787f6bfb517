// The build is for any x86-64, but most of them have wider vectors: the loader picks the widest version of a function that is
// marked so. Nothing is contracted, so all versions give the same bits. (Sanitizers are not set up yet when the loader asks.)
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)
#define TESSERA_WIDEST_VECTORS __attribute__((target_clones("arch=x86-64-v4,avx2,default")))
#else
#define TESSERA_WIDEST_VECTORS
#endif
// Of what such functions call in their loops: it becomes part of each version.
#define TESSERA_INSIDE __attribute__((always_inline)) inline

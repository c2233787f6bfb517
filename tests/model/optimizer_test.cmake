# The optimizers against torch.optim, which the virtual environment of LibTorch has.
add_executable(optimizer_trajectory optimizer_trajectory.cpp)
target_include_directories(optimizer_trajectory PRIVATE ${PROJECT_SOURCE_DIR}/src)
target_link_libraries(optimizer_trajectory PRIVATE tessera_model)
foreach(device cpu cuda)
  if(device STREQUAL "cuda" AND NOT TESSERA_WITH_CUDA)
    continue()
  endif()
  add_test(NAME optimizer_torch_${device}
    COMMAND ${TESSERA_SITE_PACKAGES}/../../../bin/python ${CMAKE_CURRENT_SOURCE_DIR}/optimizer_torch.py
            --program $<TARGET_FILE:optimizer_trajectory> --device ${device})
  set_tests_properties(optimizer_torch_${device} PROPERTIES TIMEOUT 300 SKIP_RETURN_CODE 77)
endforeach()
if(TESSERA_WITH_CUDA)
  set_tests_properties(optimizer_torch_cuda PROPERTIES LABELS gpu)
endif()

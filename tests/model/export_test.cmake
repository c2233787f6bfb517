# The Hugging Face export: its files, and that transformers computes the same from them.
tessera_test(export_test SOURCES export_test.cpp DEPENDS tessera_model_layout tessera_store)

if(TARGET tessera-model)
  add_executable(hf_export_fixture export_fixture.cpp)
  target_link_libraries(hf_export_fixture PRIVATE tessera_data tessera_model_layout tessera_store)
  add_test(NAME hf_export_logits
    COMMAND ${TESSERA_SITE_PACKAGES}/../../../bin/python ${CMAKE_CURRENT_SOURCE_DIR}/export_logits.py
            --fixture $<TARGET_FILE:hf_export_fixture> --program $<TARGET_FILE:tessera-model>)
  set_tests_properties(hf_export_logits PROPERTIES LABELS e2e TIMEOUT 300 SKIP_RETURN_CODE 77)
endif()

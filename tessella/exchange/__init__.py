"""Models in and out: checkpoints of other projects, files for other programs, the Hub.

``checkpoints``, ``unpickling``
    Checkpoint files of other projects as named tensors. Pickles are read by a process with limits.
``layouts``
    How other projects name and shape the tensors of networks that this package has too.
``importing``
    A checkpoint and its layout become a saved model.
``exporting``
    A saved model becomes ONNX files, exported programs, or plain safetensors.
``hub``
    Saved models from the Hugging Face Hub and to it.

Only the modules that are used are imported, and each of them asks for its extra by name where that
is missing.
"""

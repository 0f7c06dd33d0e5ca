"""Methods for vision-language models, one file each: in front of the decoder (``_prefix``) and in it (``_decoder``)."""

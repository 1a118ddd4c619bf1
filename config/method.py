"""`method` in a domain's YAML: which weights training changes, with PEFT's names.

`method: dora` is short for `method: {name: dora}`. A method refuses the keys of others.
"""

from typing import Annotated

from pydantic import Field

from config.converted_methods import (
    C3aMethod,
    DeloraMethod,
    FourierftMethod,
    GraloraMethod,
    LohaMethod,
    LokrMethod,
    MissMethod,
    PsoftMethod,
    RandloraMethod,
    TinyloraMethod,
    UniloraMethod,
    VbloraMethod,
    VeraMethod,
    WaveftMethod,
)
from config.lora_methods import DoraMethod, LoraMethod, LoraSettings
from config.method_settings import MethodSettings
from config.model import named_settings
from config.own_base_methods import BoftMethod, FullMethod, Ia3Method, OftMethod
from config.token_methods import BottleneckMethod, PrefixTuningMethod, PromptTuningMethod, PTuningMethod

__all__ = ["DoraMethod", "LoraMethod", "LoraSettings", "MethodConfig", "MethodSettings"]


MethodConfig = Annotated[
    Annotated[
        LoraMethod
        | DoraMethod
        | VeraMethod
        | LohaMethod
        | LokrMethod
        | DeloraMethod
        | FourierftMethod
        | RandloraMethod
        | MissMethod
        | C3aMethod
        | GraloraMethod
        | WaveftMethod
        | VbloraMethod
        | PsoftMethod
        | UniloraMethod
        | TinyloraMethod
        | Ia3Method
        | OftMethod
        | BoftMethod
        | FullMethod
        | PromptTuningMethod
        | PTuningMethod
        | PrefixTuningMethod
        | BottleneckMethod,
        Field(discriminator="name"),
    ],
    named_settings("lora"),
]

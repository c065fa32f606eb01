"""What a Keras model may be made of: names of built-in classes that only compute.

A class that is not here is refused before Keras sees it. Left out on purpose, though Keras has them: what
runs Python or another graph (Lambda, TFSMLayer, JaxLayer, TorchModuleWrapper), what reads files (the
vocabularies of StringLookup and TextVectorization), and what no image classifier of the family has (recurrent
layers).
"""

from __future__ import annotations

import re

__all__ = [
    "ACTIVATIONS",
    "CLASSES",
    "MODULES",
    "OPERATIONS",
    "PURE_OPERATORS",
    "RUNS_CODE",
    "SAVING_OPERATORS",
]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_MODELS = "Functional Sequential Model Network"
_LAYERS = """
InputLayer Dense EinsumDense Activation Identity Masking
Conv1D Conv2D Conv2DTranspose Convolution2D DepthwiseConv1D DepthwiseConv2D SeparableConv1D SeparableConv2D
MaxPooling1D MaxPooling2D MaxPool2D AveragePooling1D AveragePooling2D AvgPool2D AdaptiveAveragePooling2D
AdaptiveMaxPooling2D GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPool2D GlobalAveragePooling1D
GlobalAveragePooling2D GlobalAvgPool2D
BatchNormalization BatchNormalizationV1 BatchNormalizationV2 SyncBatchNormalization LayerNormalization
GroupNormalization UnitNormalization RMSNormalization SpectralNormalization Normalization
Add Subtract Multiply Average Maximum Minimum Concatenate Dot
ReLU LeakyReLU PReLU ELU Softmax ThresholdedReLU
Flatten Reshape Permute RepeatVector ZeroPadding1D ZeroPadding2D Cropping1D Cropping2D
UpSampling1D UpSampling2D Dropout SpatialDropout1D SpatialDropout2D AlphaDropout GaussianDropout
GaussianNoise ActivityRegularization
Rescaling Resizing CenterCrop Pipeline
RandomBrightness RandomColorDegeneration RandomColorJitter RandomContrast RandomCrop RandomErasing RandomFlip
RandomGaussianBlur RandomGrayscale RandomHue RandomInvert RandomPosterization RandomRotation RandomSaturation
RandomSharpness RandomShear RandomTranslation RandomZoom RandomHeight RandomWidth
"""
_PARTS = """
Constant Zeros Ones Identity RandomNormal RandomUniform TruncatedNormal VarianceScaling GlorotNormal
GlorotUniform HeNormal HeUniform LecunNormal LecunUniform Orthogonal OrthogonalInitializer IdentityInitializer
L1 L2 L1L2 OrthogonalRegularizer
MaxNorm NonNeg UnitNorm MinMaxNorm
DTypePolicy FloatDTypePolicy Policy DTypePolicyMap SeedGenerator
Adam AdamW Adamax Adagrad Adadelta Nadam RMSprop SGD Ftrl Lion
CategoricalCrossentropy SparseCategoricalCrossentropy BinaryCrossentropy MeanSquaredError
CategoricalAccuracy SparseCategoricalAccuracy BinaryAccuracy Accuracy Mean
"""
_VALUES = "__keras_tensor__ __tensor__ __numpy__ __bytes__ __ellipsis__ __slice__ __tuple__ TensorShape"

CLASSES = _words(f"{_MODELS} {_LAYERS} {_PARTS} {_VALUES}")

# What a functional model records where keras.ops or an arithmetic operator was applied to a tensor.
OPERATIONS = _words("""
Abs Add Average BroadcastTo Cast Clip Concatenate Conv DepthwiseConv Divide Exp ExpandDims Flip GetItem
HardSigmoid HardSwish HardSilu Log Max MaxPool AveragePool Maximum Mean Min Minimum Multiply Negative Pad
Power Reciprocal Relu Relu6 Reshape Rsqrt SeparableConv Sigmoid Silu Softmax Split Sqrt Square Squeeze
Stack Subtract Sum Take Tanh Transpose TrueDivide
""")

ACTIVATIONS = _words("""
celu elu exponential gelu glu hard_shrink hard_sigmoid hard_silu hard_swish hard_tanh leaky_relu linear
log_sigmoid log_softmax mish relu relu6 selu sigmoid silu soft_shrink softmax softplus softsign sparse_plus
sparsemax squareplus swish tanh tanh_shrink threshold
""")

RUNS_CODE = {
    "Lambda": "runs Python code that the file carries",
    "__lambda__": "runs Python code that the file carries",
    "TFSMLayer": "runs a TensorFlow graph from another folder",
    "TFOpLambda": "names a Python function of TensorFlow",
    "SlicingOpLambda": "names a Python function of TensorFlow",
    "TorchModuleWrapper": "runs a pickled PyTorch module",
    "JaxLayer": "runs JAX code that the file carries",
    "FlaxLayer": "runs JAX code that the file carries",
}

_AREAS = (
    "layers|models|initializers|regularizers|constraints|activations|dtype_policies|optimizers|losses|metrics"
    "|random|mixed_precision|ops|engine"
)
MODULES = re.compile(rf"keras(\.src)?|keras(\.src)?\.({_AREAS})(\.[a-z_0-9]+)*|builtins")

# What a SavedModel may compute with. Beside the importer's own operators: variables, constants, and what the
# training form of a layer holds, which is never run.
PURE_OPERATORS = _words("""
Const Identity IdentityN NoOp Placeholder PlaceholderWithDefault PartitionedCall StatefulPartitionedCall
VarHandleOp ReadVariableOp AssignVariableOp AssignAddVariableOp AssignSubVariableOp VarIsInitializedOp
DisableCopyOnRead Abs Add AddN AddV2 All Any ArgMax AvgPool BatchMatMul BatchMatMulV2 BatchToSpaceND BiasAdd
BroadcastArgs BroadcastTo Cast Ceil ClipByValue ConcatV2 Conv2D DepthwiseConv2dNative Div DivNoNan Einsum Elu
Equal Exp ExpandDims Fill Floor FloorDiv FloorMod FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3 GatherV2
Greater GreaterEqual LeakyRelu Less LessEqual Log LogicalAnd LogicalNot LogicalOr MatMul Max MaxPool Maximum
Mean Min Minimum MirrorPad Mul Neg NotEqual OnesLike Pack Pad PadV2 Pow PreventGradient Prod RandomUniform
RandomStandardNormal Range Rank RealDiv Reciprocal Relu Relu6 Reshape ReverseV2 Rsqrt Select SelectV2
Selu Shape Sigmoid Sign Size Slice Softmax Softplus SpaceToBatchND Split SplitV Sqrt Square SquaredDifference
Squeeze StatelessRandomGetKeyCounter StatelessRandomUniformV2 StopGradient StridedSlice Sub Sum Tanh Tile
Transpose Unpack ZerosLike
""")
# What every SavedModel holds to save and to restore its variables; not allowed anywhere else.
SAVING_OPERATORS = _words(
    "MergeV2Checkpoints RestoreV2 SaveV2 ShardedFilename StaticRegexFullMatch StringJoin"
)

#!/bin/sh
# Into the environment of an image: the package itself, and the list (SBOM) of everything that is installed with it.
set -eu
pip --python /opt/fewstep install --quiet --no-cache-dir --no-deps --no-index --force-reinstall /wheel/*.whl
mkdir -p /opt/fewstep/share
/opt/sbom/bin/cyclonedx-py environment --output-file /opt/fewstep/share/sbom.cdx.json /opt/fewstep/bin/python

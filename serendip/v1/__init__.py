"""Generated stubs of protos/serendip/v1: never edited; `./build.sh protos` makes them."""

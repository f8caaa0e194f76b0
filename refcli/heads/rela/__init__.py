"""ReLA: region-language attention for generalised referring expression segmentation."""

"""The table of answer formats."""

WRITERS = {
    "coco": "refcli.answers.coco:write_coco",
    "csv": "refcli.answers.csv_table:write_csv",
    "cvat": "refcli.answers.cvat:write_cvat",
    "fiftyone": "refcli.answers.fiftyone:write_fiftyone",
    "label-studio": "refcli.answers.label_studio:write_label_studio",
    "labelme": "refcli.answers.labelme:write_labelme",
    "odvg": "refcli.answers.training_lines:write_odvg",
    "refcli-data": "refcli.answers.training_lines:write_data",
    "yolo": "refcli.answers.yolo:write_yolo",
}
"""Name -> the function (answers, folder, min_score=...) -> Written."""
